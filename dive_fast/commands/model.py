"""`dive-fast personalize` and `fuse`: from photos to an adapter and a fused model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dive_fast.commands.common import (
    Adapter,
    Base,
    Device,
    DryRun,
    Json,
    LastFile,
    Overwrite,
    PhotoSet,
    Plot,
    Tokenizer,
    Training,
    beside,
    finish,
    following,
    torch_device,
)
from dive_fast.data.sets import SET_HELP, read_photos
from dive_fast.io import nearest
from dive_fast.options import Changes
from dive_fast.progress import log
from dive_fast.settings import NonNegativeFloat, OneOf
from dive_fast.train import recipes
from dive_fast.train.config import PersonalizeConfig
from dive_fast.types import InputError, shown
from dive_fast.words import count

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle
    from dive_fast.train.photos import Photos


def personalize(
    out: Annotated[Path, "Adapter folder to write."],
    config: Changes[PersonalizeConfig],
    recipe: Annotated[
        str,
        OneOf(tuple(recipes.RECIPES)),
        "Settings to start from: for the pocket model on a CPU; DiVE's for Stable Diffusion 1.5 on a GPU, as published; or "
        "ours for the same. The defaults shown are those of pocket; options that are given override the recipe.",
    ] = "pocket",
    model: Base = "pocket",
    tokenizer: Tokenizer = None,
    photos: Annotated[Sequence[PhotoSet], f"Photos to learn from: {SET_HELP}"] = (),
    prepared: Annotated[Path | None, "Set with latents, from dive-fast prepare, in place of --photos."] = None,
    exclude: Annotated[tuple[str, ...], "Identities to leave out."] = (),
    init_from: Annotated[
        str | None,
        "Trained adapter to add new identities to, at the learning rates that it was made with; its LoRA stays as it is.",
    ] = None,
    encoder: Annotated[
        str | None, "Encoder (from dive-fast train-encoder) whose words identities start from, with its phrase."
    ] = None,
    prior_photos: Annotated[
        Path | None, "Folder of class photos; without it the base model generates --prior-count of them."
    ] = None,
    plot: Plot = None,
    dry_run: DryRun = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Learn identities (vectors) and cameras (LoRA) from photos; rerun to resume.

    Started by torchrun or by accelerate launch --multi_gpu, the processes share every batch.
    """
    start_from = recipes.recipe(recipe)
    settings = config.apply_to(start_from)
    if init_from is not None and (settings.phrase, settings.template) != (PersonalizeConfig.phrase, None):
        raise InputError("--phrase and --template are those of the adapter that --init-from names; leave them out")
    if prior_photos is not None and not settings.prior.prior_weight:
        raise InputError("--prior-photos has no effect without --prior-weight; give both (DreamBooth's weight is 1)")
    if encoder is not None and (prepared or settings.words_from or settings.phrase != PersonalizeConfig.phrase):
        raise InputError(
            "--encoder reads --photos and has its own phrase; leave --prepared, --words-from and --phrase out"
        )
    if (prepared is None) == (not photos):
        raise InputError("no photos, or two kinds of them: give either --photos or --prepared")
    class_photos = [] if prior_photos is None else _class_photos(prior_photos)
    samples: Photos = [] if prepared else without(read_photos(*photos), exclude)
    from dive_fast.distributed import leading, process_group
    from dive_fast.models import load_adapter, load_bundle
    from dive_fast.train.dryrun import dry_run as forecast_run
    from dive_fast.train.personalize import personalize as learn
    from dive_fast.train.photos import samples_of
    from dive_fast.train.prepared import load_prepared
    from dive_fast.train.trainer import PHASES

    training = Training(out / "adapter.json", plot, dry_run, json, PHASES)
    base = load_adapter(init_from) if init_from is not None else None
    if base is not None:
        settings = config.apply_to(recipes.with_rates_of(start_from, base.metadata, f"adapter {init_from}"))
    settings = with_phrase(settings)
    bundle = load_bundle(model, tokenizer)
    if prepared is not None:
        samples = without(load_prepared(prepared, bundle), exclude)
    chosen = torch_device(device)
    with process_group(chosen):
        if leading():
            _log_settings(recipe, settings, bundle, None if base is None else init_from)
        start = None
        if encoder is not None:
            from dive_fast.encoder.encode import start_of
            from dive_fast.encoder.folder import load_encoder

            opened = load_encoder(encoder, device=chosen)
            start = start_of(opened, bundle, samples_of(samples), progress=leading())
            settings = replace(settings, template=settings.template or opened.template)
        adapter = training.run(
            lambda: learn(bundle, samples, out, settings, base, device=chosen, class_photos=class_photos, start=start),
            lambda: forecast_run(bundle, samples, out, settings, base, chosen, class_photos, start),
        )
    if adapter is None:
        return
    cameras = [camera.name for camera in adapter.cameras]
    finish(
        f"adapter {out}: {count(len(adapter.identities), 'identity')}, cameras {', '.join(cameras)}",
        {
            "adapter": out,
            "identities": len(adapter.identities),
            "cameras": cameras,
            "photos": len(samples_of(samples)),
            "fingerprint": adapter.fingerprint,
        },
        json,
        then=following("fuse", model=model, tokenizer=tokenizer, adapter=out, out=beside(out, "fused")),
        kept=training.last.kept,
    )


def _log_settings(recipe: str, settings: PersonalizeConfig, bundle: ModelBundle, init_from: str | None) -> None:
    """Reports the rates that an adapter passed on, and warns of the pocket model's recipe on another model."""
    if init_from is not None:
        rates = ", ".join(f"--{name.replace('_', '-')} {getattr(settings, name):g}" for name in recipes.RATES[1:])
        log(f"new identities of {init_from} learn with {rates}")
    if recipe == "pocket" and bundle.sampling is None:
        log(
            "note: recipe pocket is for the pocket model, and this is another; Stable Diffusion 1.5 takes --recipe dive "
            "(as published) or sd15 (ours)"
        )


def with_phrase(config: PersonalizeConfig) -> PersonalizeConfig:
    """Returns the config with phrase and tones "pocket" written out, and with its caption unless another is given."""
    from dive_fast.world.captions import CAPTION_TEMPLATE, TONES, caption_phrase

    if config.ir_tones == "pocket":
        config = replace(config, ir_tones="|".join(TONES))
    if config.phrase == "pocket":
        config = replace(config, phrase=caption_phrase(), template=config.template or CAPTION_TEMPLATE)
    return config


def _class_photos(folder: Path) -> list[Path]:
    from dive_fast.data.names import describe_unread, image_files, require_folder

    require_folder(folder, "image files of people in general")
    unread: list[Path] = []
    files = image_files(folder, unread)
    if not files:
        raise InputError(f"--prior-photos {folder} has no image; without the option the base model generates some")
    if unread:
        log(f"--prior-photos {folder}: {describe_unread(unread)}")
    return files


def without(photos: Photos, excluded: Sequence[str]) -> Photos:
    """Returns the photos of all other identities; raises `InputError` for an excluded identity without photos."""
    import numpy as np

    from dive_fast.train.photos import only, samples_of

    samples = samples_of(photos)
    known = {sample.pid for sample in samples}
    unknown = [pid for pid in excluded if pid not in known]
    if unknown:
        raise InputError(
            f"--exclude names {len(unknown)} identities without photos, first {shown(unknown[0])}"
            f"{nearest(unknown[0], known)}"
        )
    return only(photos, np.array([sample.pid not in excluded for sample in samples], dtype=bool))


def fuse(
    adapter: Adapter,
    out: Annotated[Path, "Fused model folder to write; plain diffusers opens it."],
    model: Base = "pocket",
    tokenizer: Tokenizer = None,
    scale: Annotated[NonNegativeFloat, "Strength of the LoRA."] = 1.0,
    student: Annotated[
        Path | None,
        "Student (from dive-fast distil) of the same base and LoRA: the result is one too, with the adapter's identities.",
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Put an adapter's LoRA and identities into the weights of its base model."""
    from dive_fast import models

    last = LastFile(out / "model_index.json")
    fused = models.fuse(models.load_bundle(model, tokenizer), models.load_adapter(adapter), scale)
    if student is not None:
        fused = models.taught_by(fused, models.load_bundle(student))
    models.save_bundle(fused, out, overwrite=overwrite)
    identities = len(fused.prompts.identities) if fused.prompts else 0
    finish(
        f"fused model {out}: {count(identities, 'identity')}, fingerprint {fused.fingerprint[:12]}",
        {"model": out, "identities": identities, "fingerprint": fused.fingerprint},
        json,
        then=following("export", model=out, out=beside(out, "engine")),
        kept=last.kept,
    )
