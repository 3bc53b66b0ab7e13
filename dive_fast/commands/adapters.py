"""`dive-fast import` and `export-adapter`: LoRA and embeddings of other tools in, and ours out in their layouts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.commands.common import Json, Tokenizer, finish, names, say

if TYPE_CHECKING:
    from dive_fast.models.interop import Imported

_SHOWN = 20  # layers left out that are named one by one on the screen; adapter.json has all


def import_adapter(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folder with DiVE's or diffusers' files, or the files: LoRA (diffusers, PEFT, kohya), embeddings "
            "(diffusers, AUTOMATIC1111), dataset_info.json. Safetensors, or pickles, which are never run."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Adapter folder to write.")],
    model: Annotated[
        str, typer.Option(help="Base model that they were trained on: diffusers folder or one .safetensors file.")
    ] = "pocket",
    tokenizer: Tokenizer = None,
    camera: Annotated[
        list[str] | None,
        typer.Option(help="A camera as NAME=rgb:CODE or NAME=ir:CODE, as cam3=ir:8miP; wins over dataset_info.json."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="The prompt, with {cam} and {token}; without it DiVE's, 'a {cam} photo of a {token} person'."
        ),
    ] = None,
    drop_unsupported: Annotated[
        bool, typer.Option(help="Leave out what no adapter holds (text encoder, convolutions), and say what.")
    ] = False,
    onto: Annotated[
        str | None, typer.Option(help="Adapter that the people of embedding files join; its LoRA and cameras stay.")
    ] = None,
    json: Json = False,
) -> None:
    """Make an adapter of the published DiVE weights, or of another tool's LoRA and textual inversion."""
    from dive_fast import models
    from dive_fast.models import interop

    cameras = [interop.parse_camera(text) for text in camera or []]
    base = models.load_adapter(onto) if onto is not None else None
    bundle = models.load_bundle(model, tokenizer)
    imported = interop.import_adapter(bundle, sources, cameras, template, drop_unsupported, base)
    models.save_adapter(imported.adapter, out)
    _say_what_is_missing(imported)
    adapter = imported.adapter
    named = ", ".join(f"{camera.name} ({camera.modality} {camera.code})" for camera in adapter.cameras)
    finish(
        f"adapter {out}: {len(adapter.identities):,} identities, LoRA of rank {adapter.rank} on {imported.landed} of "
        f"{imported.linears} attention linears, cameras {named}",
        {"adapter": out, "identities": len(adapter.identities), "cameras": [c.name for c in adapter.cameras],
         "rank": adapter.rank, "alpha": adapter.alpha, "landed": imported.landed, "linears": imported.linears,
         "dropped": imported.dropped, "files": imported.files, "fingerprint": adapter.fingerprint},
        json,
    )  # fmt: skip


def _say_what_is_missing(imported: Imported) -> None:
    dropped = imported.dropped
    if dropped:
        say(f"left out, as no adapter holds it: {len(dropped)} layers, all named in adapter.json")
        for layer in dropped[:_SHOWN]:
            say(f"  {layer}")
        if len(dropped) > _SHOWN:
            say(f"  and {len(dropped) - _SHOWN} more")
    if imported.landed < imported.linears:
        say(f"{imported.linears - imported.landed} attention linears have no LoRA in the file and stay as in the base")


def export_adapter(
    adapter: Annotated[str, typer.Option(help="Adapter folder; pocket is the shipped one.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    layout: Annotated[
        Literal["diffusers", "kohya"], typer.Option(help="Names of the LoRA's tensors: diffusers' or kohya's.")
    ] = "diffusers",
    pids: Annotated[str | None, typer.Option(help="Identities, comma-separated; by default all.")] = None,
    json: Json = False,
) -> None:
    """Write an adapter as LoRA and textual inversion that diffusers loads; dive-fast import reads it again."""
    from dive_fast import models
    from dive_fast.models import interop

    exported = models.load_adapter(adapter)
    if pids is not None:
        exported = models.subset(exported, names(pids))
    interop.export_adapter(exported, out, layout)
    finish(
        f"{layout} files {out}: LoRA of rank {exported.rank}, {len(exported.identities):,} identities",
        {"folder": out, "layout": layout, "identities": len(exported.identities), "rank": exported.rank},
        json,
    )
