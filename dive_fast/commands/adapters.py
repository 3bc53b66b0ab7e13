"""`dive-fast import` and `export-adapter`: LoRA and embeddings of other tools in, and ours out in their layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dive_fast.commands.common import (
    Adapter,
    Base,
    Json,
    LastFile,
    Overwrite,
    Tokenizer,
    beside,
    finish,
    following,
)
from dive_fast.data.names import abbreviate, canonical_pid
from dive_fast.models.interop import Layout, parse_camera
from dive_fast.progress import log
from dive_fast.settings import Reads
from dive_fast.types import Camera, InputError, shown
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast import models

NamedCamera = Annotated[Camera, Reads(parse_camera, "NAME=MODALITY:CODE")]


def parse_person(text: str) -> tuple[str, Path]:
    """Returns the name and the file that `NAME=FILE` gives; anything else raises `InputError`."""
    name, _, file = text.partition("=")
    if not (name and file):
        raise InputError(f"--person {shown(text)}: write NAME=FILE, as anna=embeddings/person.pt")
    return name, Path(file)


Person = Annotated[tuple[str, Path], Reads(parse_person, "NAME=FILE")]


def import_adapter(
    sources: Annotated[
        Sequence[Path],
        "Folder with DiVE's or diffusers' files, or the files: LoRA (diffusers, PEFT, kohya), embeddings (diffusers, "
        "AUTOMATIC1111), dataset_info.json. Safetensors, or pickles, whose code is never run.",
    ],
    /,
    out: Annotated[Path, "Adapter folder to write."],
    model: Base = "pocket",
    tokenizer: Tokenizer = None,
    camera: Annotated[
        Sequence[NamedCamera], "A camera, modality rgb or ir, as cam3=ir:8miP; overrides dataset_info.json."
    ] = (),
    person: Annotated[
        Sequence[Person],
        "The identity of an embedding file; without it, one has its token's name, else its file's or folder's.",
    ] = (),
    template: Annotated[
        str | None, "The prompt, with {cam} and {token}; without it DiVE's, 'a {cam} photo of a {token} person'."
    ] = None,
    drop_unsupported: Annotated[
        bool, "Drop layers that no adapter holds (text encoder, convolutions), and list them."
    ] = False,
    init_from: Annotated[
        str | None, "Adapter that the identities of embedding files join; its LoRA and cameras stay."
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make an adapter of the published DiVE weights, or of another tool's LoRA and textual inversion."""
    from dive_fast import models
    from dive_fast.models import interop

    last = LastFile(out / "adapter.json")
    base = models.load_adapter(init_from) if init_from is not None else None
    bundle = models.load_bundle(model, tokenizer)
    persons = {file: name for name, file in person}
    imported = interop.import_adapter(bundle, sources, camera, template, drop_unsupported, base, persons)
    adapter, dropped = _with_pids(imported.adapter), imported.dropped
    models.save_adapter(adapter, out, overwrite=overwrite)
    if dropped:
        names = abbreviate(dropped, 20)
        log(f"dropped {len(dropped)} layers that no adapter holds: {names}; adapter.json lists all")
    if imported.landed < imported.linears:
        log(f"{imported.linears - imported.landed} attention linears have no LoRA in the file and stay as in the base")
    named = ", ".join(f"{camera.name} ({camera.modality} {camera.code})" for camera in adapter.cameras)
    finish(
        f"adapter {out}: {count(len(adapter.identities), 'identity')}, LoRA of rank {adapter.rank} on {imported.landed} of "
        f"{imported.linears} attention linears, cameras {named}",
        {
            "adapter": out,
            "identities": len(adapter.identities),
            "cameras": [camera.name for camera in adapter.cameras],
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "landed": imported.landed,
            "linears": imported.linears,
            "dropped": dropped,
            "files": imported.files,
            "fingerprint": adapter.fingerprint,
        },
        json,
        then=following("fuse", model=model, tokenizer=tokenizer, adapter=out, out=beside(out, "fused")),
        kept=last.kept,
    )


def _with_pids(adapter: models.Adapter) -> models.Adapter:
    """The adapter with its identities spelled as folders of photos are; raises `InputError` for names that none can have."""
    spelled = [
        canonical_pid(one.pid, "import: an embedding's name (--person changes it)") for one in adapter.identities
    ]
    return replace(
        adapter,
        identities=tuple(replace(one, pid=pid) for one, pid in zip(adapter.identities, spelled, strict=True)),
    )


def export_adapter(
    adapter: Adapter,
    out: Annotated[Path, "Folder to write."],
    layout: Annotated[Layout, "Names of the LoRA's tensors: diffusers' or kohya's."] = "diffusers",
    pids: Annotated[tuple[str, ...], "Identities; by default all."] = (),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Write an adapter as LoRA and textual inversion that diffusers loads; dive-fast import reads it again."""
    from dive_fast import models
    from dive_fast.models import interop

    last = LastFile(out / "identities.json")
    exported = models.load_adapter(adapter)
    if pids:
        exported = models.subset(exported, list(pids))
    interop.export_adapter(exported, out, layout, overwrite)
    finish(
        f"{layout} files {out}: LoRA of rank {exported.rank}, {count(len(exported.identities), 'identity')}",
        {"folder": out, "layout": layout, "identities": len(exported.identities), "rank": exported.rank},
        json,
        then=following("import", out, model="BASE", out=beside(out, "imported")),
        kept=last.kept,
    )
