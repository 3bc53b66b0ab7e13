"""`dive-fast personalize`, `fuse` and `export`: from photos to an adapter, a fused model and an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dive_fast.commands.common import (
    LAYOUT_HELP,
    PREFIX_HELP,
    Device,
    Json,
    Layout,
    finish,
    image_size,
    names,
    read_photos,
    torch_device,
)
from dive_fast.io import nearest
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.types import Sample

Base = Annotated[str, typer.Option(help="Base model folder in diffusers' layout; pocket is the shipped one.")]


def personalize(
    out: Annotated[Path, typer.Option(help="Adapter folder to write.")],
    model: Base = "pocket",
    paired: Annotated[
        Path | None, typer.Option(help="SYSU-MM01 tree: people in RGB and infrared, its train and val lists.")
    ] = None,
    external: Annotated[Path | None, typer.Option(help="Photos of people in RGB only.")] = None,
    external_layout: Annotated[Layout, typer.Option(help=LAYOUT_HELP)] = "market",
    external_camera: Annotated[str, typer.Option(help="The one camera name that external photos get.")] = "cam7",
    external_prefix: Annotated[str, typer.Option(help=PREFIX_HELP)] = "",
    exclude: Annotated[str | None, typer.Option(help="Identities to leave out, comma-separated.")] = None,
    onto: Annotated[
        str | None, typer.Option(help="Trained adapter to add new identities to; its LoRA stays as it is.")
    ] = None,
    identity_steps: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps in which identities alone learn, before the LoRA; they then stay. 0: all at once, as DiVE.",
        ),
    ] = 4000,
    steps: Annotated[int, typer.Option(min=1, help="Training steps; with --identity-steps, of the LoRA.")] = 1500,
    batch: Annotated[int, typer.Option(min=1, help="Photos a step.")] = 32,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA; DiVE used 128 on Stable Diffusion 1.5.")] = 8,
    phrase: Annotated[
        str,
        typer.Option(
            help="How a person is put into words: text in which {person} is a vector learned for each person, starting from "
            "that word (alone: as DiVE), and {red|green|blue} a mix of these by learned weights. pocket: the shipped one's."
        ),
    ] = "{person}",
    words_from: Annotated[
        str | None,
        typer.Option(
            help="Tagger folder (dive-fast world train-tagger) that reads off the photos where words that mix start; pocket is"
            " the shipped one. Without it all words of a mix start alike."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="The caption of every photo, with {cam} and {token}; without it twenty sentences, as DiVE."),
    ] = None,
    phrase_drop: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a phrase's parts (between commas) that captions leave out.")
    ] = 0.0,
    text_noise: Annotated[
        float,
        typer.Option(
            min=0,
            help="Noise on text embeddings while the LoRA learns, in units of their deviation, so that what it learns of few "
            "people holds for others.",
        ),
    ] = 0.0,
    lora_lr: Annotated[float, typer.Option(min=0, help="Peak learning rate of the LoRA; DiVE on SD 1.5: 5e-5.")] = 2e-3,
    token_lr: Annotated[float, typer.Option(min=0, help="Peak learning rate of vectors that are free.")] = 3e-3,
    mix_lr: Annotated[float, typer.Option(min=0, help="Peak learning rate of the weights of words that mix.")] = 0.07,
    ir_share: Annotated[float, typer.Option(min=0, max=1, help="Share of infrared photos in a batch.")] = 0.5,
    noisy_share: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Share of timesteps from the noisier half; DiVE 0.5.")
    ] = 0.75,
    identity_noisy_share: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="The same, in steps where identities learn alone.")
    ] = 0.4,
    identities_from_ir: Annotated[
        bool, typer.Option(help="Let infrared photos teach identities that RGB photos teach, as DiVE does.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between states that a rerun resumes from.")] = 100,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw the loss curve into.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Learn identities (vectors) and cameras (LoRA) from photos; rerun to resume; shares batches under torchrun."""
    if onto is not None and (phrase != "{person}" or template is not None):
        raise InputError("--phrase and --template are those of the adapter that --onto names; leave them out")
    samples = _without(
        _training_samples(paired, external, external_layout, external_camera, external_prefix), names(exclude)
    )
    from dive_fast.models import load_adapter, load_bundle
    from dive_fast.train.curves import plot_curves, require_matplotlib
    from dive_fast.train.parallel import leading, process_group
    from dive_fast.train.personalize import PersonalizeConfig, loss_curves
    from dive_fast.train.personalize import personalize as learn

    if plot is not None:
        require_matplotlib()
    phrase, template = _in_words(phrase, template)
    config = PersonalizeConfig(
        identity_steps=identity_steps,
        steps=steps,
        batch=batch,
        rank=rank,
        phrase=phrase,
        template=template,
        phrase_drop=phrase_drop,
        words_from=words_from,
        text_noise=text_noise,
        lora_lr=lora_lr,
        mix_lr=mix_lr,
        token_lr=token_lr,
        ir_share=ir_share,
        noisy_share=noisy_share,
        identity_noisy_share=identity_noisy_share,
        identities_from_ir=identities_from_ir,
        seed=seed,
        save_every=save_every,
    )
    base = load_adapter(onto) if onto is not None else None
    computes_on = torch_device(device)
    with process_group(computes_on):
        adapter = learn(load_bundle(model), samples, out, config, onto=base, device=computes_on)
        if not leading():
            return
    if plot is not None:
        plot_curves(loss_curves(out), plot)
    cameras = ", ".join(camera.name for camera in adapter.cameras)
    finish(
        f"adapter {out}: {len(adapter.identities):,} identities, cameras {cameras}",
        {"adapter": out, "identities": len(adapter.identities), "cameras": [c.name for c in adapter.cameras],
         "photos": len(samples), "fingerprint": adapter.fingerprint},
        json,
    )  # fmt: skip


def _in_words(phrase: str, template: str | None) -> tuple[str, str | None]:
    """The phrase and template that the words of the command line stand for."""
    from dive_fast.world.persons import CAPTION_TEMPLATE, caption_phrase

    if phrase == "pocket":
        return caption_phrase(), CAPTION_TEMPLATE if template is None else template
    return phrase, template


def _training_samples(
    paired: Path | None, external: Path | None, layout: Layout, camera: str, prefix: str
) -> list[Sample]:
    """Both sets of people; names that are in both raise, as they are different people."""
    from dive_fast.data import read_sysu

    if paired is None and external is None:
        raise InputError("no photos to learn from; give --paired, --external or both")
    known = read_sysu(paired, "trainval") if paired is not None else []
    others = read_photos(external, layout, camera, prefix) if external is not None else []
    shared = {sample.pid for sample in known} & {sample.pid for sample in others}
    if shared:
        raise InputError(
            f"{len(shared):,} identity names are in --paired and in --external, first {min(shared)!r}; "
            "tell the people apart with --external-prefix"
        )
    return [*known, *others]


def _without(samples: list[Sample], excluded: list[str]) -> list[Sample]:
    """The photos of everybody else; a name that nobody has raises."""
    people = {sample.pid for sample in samples}
    unknown = [pid for pid in excluded if pid not in people]
    if unknown:
        raise InputError(f"--exclude names {len(unknown)} identities without photos, first {unknown[0]!r}"
                         f"{nearest(unknown[0], people)}")  # fmt: skip
    return [sample for sample in samples if sample.pid not in excluded]


def fuse(
    adapter: Annotated[str, typer.Option(help="Adapter folder; pocket is the shipped one.")],
    out: Annotated[Path, typer.Option(help="Fused model folder to write; plain diffusers opens it.")],
    model: Base = "pocket",
    scale: Annotated[float, typer.Option(min=0, help="Strength of the LoRA.")] = 1.0,
    json: Json = False,
) -> None:
    """Put an adapter's LoRA and identities into the weights of its base model."""
    from dive_fast import models

    fused = models.fuse(models.load_bundle(model), models.load_adapter(adapter), scale)
    models.save_bundle(fused, out)
    people = len(fused.prompts.identities) if fused.prompts else 0
    finish(
        f"fused model {out}: {people:,} identities, fingerprint {fused.fingerprint[:12]}",
        {"model": out, "identities": people, "fingerprint": fused.fingerprint},
        json,
    )


def export(
    model: Annotated[Path, typer.Option(help="Fused model folder, from dive-fast fuse.")],
    out: Annotated[Path, typer.Option(help="Engine folder to write.")],
    rows_max: Annotated[int, typer.Option(min=1, help="Most UNet rows a call; guidance takes two an image.")] = 64,
    size: Annotated[str | None, typer.Option(help="Image size HEIGHTxWIDTH; by default the model's own.")] = None,
    check: Annotated[bool, typer.Option(help="Measure each part against torch and refuse what is over budget.")] = True,
    json: Json = False,
) -> None:
    """Export a fused model to an engine folder: ONNX opset 23 for onnxruntime."""
    from dive_export.artifact import export_engine
    from dive_fast.types import to_dict

    spec = export_engine(model, out, rows_max, check, size=image_size(size))
    profile = spec.profile
    finish(
        f"engine {out}: {spec.backend} {spec.precision}, {profile.height}x{profile.width}, up to {profile.rows_max} rows",
        {"engine": out, **to_dict(spec)},
        json,
    )
