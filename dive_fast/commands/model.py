"""`dive-fast personalize` and `fuse`: from photos to an adapter and a fused model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.commands.common import (
    LAYOUT_HELP,
    PAIRED_LAYOUT_HELP,
    PREFIX_HELP,
    Device,
    Json,
    Layout,
    PairedLayout,
    Tokenizer,
    finish,
    names,
    read_paired,
    read_photos,
    torch_device,
)
from dive_fast.io import nearest
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.train.photos import Photos
    from dive_fast.types import Sample

Base = Annotated[
    str, typer.Option(help="Base model, a diffusers folder or one .safetensors file; pocket is the shipped one.")
]


def personalize(
    out: Annotated[Path, typer.Option(help="Adapter folder to write.")],
    model: Base = "pocket",
    tokenizer: Tokenizer = None,
    prepared: Annotated[
        Path | None,
        typer.Option(help="Set that dive-fast prepare wrote, with latents, in place of --paired and --external."),
    ] = None,
    paired: Annotated[
        Path | None, typer.Option(help="Photos of people in RGB and infrared, what is trained on.")
    ] = None,
    paired_layout: Annotated[PairedLayout, typer.Option(help=PAIRED_LAYOUT_HELP)] = "sysu",
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
            help="Tagger folder (dive-fast world train-tagger) that reads off the photos where words that mix start; pocket "
            "is the shipped one. Without it all words of a mix start alike."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="The caption of every photo, with {cam} and {token}; without it twenty sentences, as DiVE."),
    ] = None,
    phrase_drop: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a phrase's parts (between commas) that captions leave out.")
    ] = 0.0,
    bare_code: Annotated[
        float, typer.Option(min=0, max=1, help="Share of captions that are the camera's code alone; DiVE 0.5.")
    ] = 0.1,
    text_noise: Annotated[
        float,
        typer.Option(
            min=0,
            help="Noise on text embeddings while the LoRA learns, in units of their deviation, so that what it learns of "
            "few people holds for others.",
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
    weighting: Annotated[
        Literal["debiased", "min-snr", "plain"],
        typer.Option(
            help="How timesteps count: by 1 / sqrt(SNR), by min-SNR-gamma (arXiv 2303.09556), or alike as DiVE."
        ),
    ] = "debiased",
    snr_gamma: Annotated[float, typer.Option(min=0.01, help="The gamma of --weighting min-snr.")] = 5.0,
    average: Annotated[
        float, typer.Option(min=0, max=0.99999, help="Decay of the weights' moving average, which is kept; 0: none.")
    ] = 0.995,
    prior_weight: Annotated[
        float,
        typer.Option(min=0, help="What photos of people in general count in the LoRA's loss (DreamBooth: 1); 0: none."),
    ] = 0.0,
    prior_photos: Annotated[
        Path | None, typer.Option(help="Folder of such photos; without it the base makes --prior-count of them.")
    ] = None,
    prior_prompt: Annotated[str, typer.Option(help="The caption of such photos.")] = "a photo of a person",
    prior_count: Annotated[int, typer.Option(min=1, help="How many of them the base makes.")] = 200,
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"],
        typer.Option(help="Precision of all but what learns, which is float32; fp16, with loss scaling, needs a GPU."),
    ] = "no",
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts that a batch is worked through in, to save memory; the numbers stay.")
    ] = 1,
    checkpointing: Annotated[
        bool, typer.Option(help="Compute the UNet's activations twice instead of keeping them: less memory, more time.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between states that a rerun resumes from.")] = 100,
    sheet_every: Annotated[
        int, typer.Option(min=0, help="Steps between sheets of sampled images, PNGs beside the loss log; 0: none.")
    ] = 0,
    sheet_people: Annotated[int, typer.Option(min=1, help="People on a sheet, each through every camera.")] = 4,
    sample_steps: Annotated[int, typer.Option(min=1, help="Denoising steps of images made during training.")] = 20,
    sample_guidance: Annotated[
        float, typer.Option(min=0, help="Guidance of images made during training; Stable Diffusion 1.5: 7.5.")
    ] = 2.0,
    tensorboard: Annotated[bool, typer.Option(help="Also log for TensorBoard, in OUT.training/tensorboard.")] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG file to draw the loss curve into.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Only say what the run would take, from a few timed steps; write nothing.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Learn identities (vectors) and cameras (LoRA) from photos; rerun to resume.

    Started by torchrun or by accelerate launch --multi_gpu, the processes share every batch.
    """
    if onto is not None and (phrase != "{person}" or template is not None):
        raise InputError("--phrase and --template are those of the adapter that --onto names; leave them out")
    if prior_photos is not None and not prior_weight:
        raise InputError(
            "--prior-photos counts for nothing without --prior-weight; give both, DreamBooth's weight is 1"
        )
    class_photos = _class_photos(prior_photos) if prior_photos is not None else []
    excluded = names(exclude)
    if prepared is not None and (paired is not None or external is not None):
        raise InputError("--prepared takes the place of --paired and --external; give one or the other")
    photos: Photos = []
    if prepared is None:
        sets = paired, paired_layout, external, external_layout, external_camera, external_prefix
        photos = _without(_training_samples(*sets), excluded)
    from dive_fast.distributed import leading, process_group
    from dive_fast.models import load_adapter, load_bundle
    from dive_fast.train.config import Compute, PersonalizeConfig, Prior, Samples
    from dive_fast.train.curves import plot_curves, require_matplotlib
    from dive_fast.train.dryrun import dry_run as foresee
    from dive_fast.train.personalize import loss_curves
    from dive_fast.train.personalize import personalize as learn
    from dive_fast.train.photos import samples_of
    from dive_fast.train.prepared import load_prepared
    from dive_fast.types import to_dict

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
        bare_code=bare_code,
        lora_lr=lora_lr,
        mix_lr=mix_lr,
        token_lr=token_lr,
        ir_share=ir_share,
        noisy_share=noisy_share,
        identity_noisy_share=identity_noisy_share,
        identities_from_ir=identities_from_ir,
        weighting=weighting,
        snr_gamma=snr_gamma,
        average=average,
        seed=seed,
        save_every=save_every,
        tensorboard=tensorboard,
        compute=Compute(mixed_precision, accumulate, checkpointing),
        prior=Prior(prior_weight, prior_prompt, prior_count),
        samples=Samples(sheet_every, sheet_people, sample_steps, sample_guidance),
    )
    base = load_adapter(onto) if onto is not None else None
    bundle = load_bundle(model, tokenizer)
    if prepared is not None:
        photos = _without(load_prepared(prepared, bundle), excluded)
    computes_on = torch_device(device)
    with process_group(computes_on):
        if dry_run:
            forecast = foresee(bundle, photos, out, config, base, computes_on, class_photos)
        else:
            adapter = learn(bundle, photos, out, config, base, device=computes_on, class_photos=class_photos)
        if not leading():
            return
    if dry_run:
        finish(forecast.text(), to_dict(forecast), json)
        return
    if plot is not None:
        plot_curves(loss_curves(out), plot)
    cameras = ", ".join(camera.name for camera in adapter.cameras)
    finish(
        f"adapter {out}: {len(adapter.identities):,} identities, cameras {cameras}",
        {"adapter": out, "identities": len(adapter.identities), "cameras": [c.name for c in adapter.cameras],
         "photos": len(samples_of(photos)), "fingerprint": adapter.fingerprint},
        json,
    )  # fmt: skip


def _in_words(phrase: str, template: str | None) -> tuple[str, str | None]:
    """The phrase and template that the words of the command line stand for."""
    from dive_fast.world.persons import CAPTION_TEMPLATE, caption_phrase

    if phrase == "pocket":
        return caption_phrase(), CAPTION_TEMPLATE if template is None else template
    return phrase, template


def _training_samples(
    paired: Path | None, paired_layout: PairedLayout, external: Path | None, layout: Layout, camera: str, prefix: str
) -> list[Sample]:
    """Both sets of people; names that are in both raise, as they are different people."""
    if paired is None and external is None:
        raise InputError("no photos to learn from; give --paired, --external or both, or --prepared")
    known = read_paired(paired, paired_layout) if paired is not None else []
    others = read_photos(external, layout, camera, prefix) if external is not None else []
    shared = {sample.pid for sample in known} & {sample.pid for sample in others}
    if shared:
        raise InputError(
            f"{len(shared):,} identity names are in --paired and in --external, first {min(shared)!r}; "
            "tell the people apart with --external-prefix"
        )
    return [*known, *others]


def _class_photos(folder: Path) -> list[Path]:
    from dive_fast.data.names import image_files, require_folder

    require_folder(folder, "image files of people in general")
    files = image_files(folder)
    if not files:
        raise InputError(
            f"--prior-photos {folder} has no image; put some there, or leave it out: the base then makes them"
        )
    return files


def _without(photos: Photos, excluded: list[str]) -> Photos:
    """The photos of everybody else; a name that nobody has raises."""
    import numpy as np

    from dive_fast.train.photos import only, samples_of

    samples = samples_of(photos)
    people = {sample.pid for sample in samples}
    unknown = [pid for pid in excluded if pid not in people]
    if unknown:
        raise InputError(f"--exclude names {len(unknown)} identities without photos, first {unknown[0]!r}"
                         f"{nearest(unknown[0], people)}")  # fmt: skip
    return only(photos, np.array([sample.pid not in excluded for sample in samples], dtype=bool))


def fuse(
    adapter: Annotated[str, typer.Option(help="Adapter folder; pocket is the shipped one.")],
    out: Annotated[Path, typer.Option(help="Fused model folder to write; plain diffusers opens it.")],
    model: Base = "pocket",
    tokenizer: Tokenizer = None,
    scale: Annotated[float, typer.Option(min=0, help="Strength of the LoRA.")] = 1.0,
    json: Json = False,
) -> None:
    """Put an adapter's LoRA and identities into the weights of its base model."""
    from dive_fast import models

    fused = models.fuse(models.load_bundle(model, tokenizer), models.load_adapter(adapter), scale)
    models.save_bundle(fused, out)
    people = len(fused.prompts.identities) if fused.prompts else 0
    finish(
        f"fused model {out}: {people:,} identities, fingerprint {fused.fingerprint[:12]}",
        {"model": out, "identities": people, "fingerprint": fused.fingerprint},
        json,
    )
