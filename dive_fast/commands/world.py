"""`dive-fast world`: the pocket world, its sheets, and the training of the pocket base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Device, Json, LastFile, Overwrite, beside, finish, following, torch_device
from dive_fast.experiments.config import StudyConfig
from dive_fast.progress import log
from dive_fast.settings import NonNegativeInt, Part, Within
from dive_fast.words import count
from dive_fast.world.base.config import BaseTrainConfig, TaggerConfig
from dive_fast.world.config import WorldSpec


def make(
    out: Annotated[Path, "Folder to write: sysu/, market/ and oracle/."],
    spec: WorldSpec,
    json: Json = False,
) -> None:
    """Render a SYSU-MM01 tree, a Market-1501 tree and the true infrared that a real city lacks; rerun to resume."""
    from dive_fast.world.trees import build_world

    last = LastFile(out / "world.json")
    images = build_world(out, spec, progress=True)
    then = following("fuse", adapter="pocket", out=beside(out, "fused"))
    if spec.seed:  # the shipped adapter knows the people of seed 0 alone
        photos = f"market:{out / 'market'},prefix={spec.seed}"
        then = following("encode", photos=photos, out=beside(out, "adapter"))
    text = f"world {out}: {count(images, 'image')} made"
    finish(text, {"world": out, "images": images}, json, then=then, kept=last.kept)


def sheet(
    out: Annotated[Path, "PNG file to write."],
    pids: Annotated[tuple[int, ...], "Numbers of the identities."] = (1, 2, 3, 4),
    seed: Annotated[NonNegativeInt, "Seed of the world."] = 0,
    zoom: Annotated[int, Within(1, 8), "Enlargement."] = 2,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Draw some identities in all six cameras."""
    from dive_fast.io import atomic_encode
    from dive_fast.outputs import PNG, output_file
    from dive_fast.world.sheets import identity_sheet

    last = LastFile(out)
    with output_file(out, PNG, overwrite) as fresh:
        picture = identity_sheet(seed, pids, zoom=zoom)
        atomic_encode(fresh, lambda stream: picture.save(stream, "PNG"))
    then = following("world make", out=beside(out, "world"), seed=seed or None)
    text = f"sheet {out}: {count(len(pids), 'identity')}"
    finish(text, {"sheet": out, "people": len(pids)}, json, then=then, kept=last.kept)


def train_base(
    out: Annotated[Path, "Model folder to write, in Stable Diffusion 1.5's layout."],
    work: Annotated[Path, "Folder for images, latents and states; a rerun resumes from it."],
    config: BaseTrainConfig,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train the pocket base model, or continue one: minutes on a GPU, days on two CPU cores; torchrun shares batches."""
    from dive_fast.distributed import leading, process_group
    from dive_fast.world.base import train

    last = LastFile(out / "model_index.json")
    chosen = torch_device(device)
    with process_group(chosen):
        report = train.train_base(config, out, work, chosen, overwrite)
        if leading():
            then = following("demo", model=out, adapter="none", out=beside(out, "demo"))
            finish(f"base model {out}", {"model": out, "autoencoder": report}, json, then=then, kept=last.kept)


def train_tagger(
    out: Annotated[Path, "Tagger folder to write."],
    work: Annotated[Path, "Folder for images and states; a rerun resumes from it."],
    config: Annotated[TaggerConfig, Part(only=("steps", "batch", "images"))],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train the classifier that predicts a person's words from photos (personalize --words-from); 20 minutes on a CPU."""
    from dive_fast.world.base import tagger_train

    last = LastFile(out / "tagger.json")
    report = tagger_train.train_tagger(config, out, work, overwrite)
    options = {"words_from": out, "phrase": "pocket", "photos": "folder:PHOTOS"}
    then = following("personalize", **options, out=beside(out, "adapter"))
    text = f"tagger {out}: {report['right']:.0%} of words right"
    finish(text, {"tagger": out, **report}, json, then=then, kept=last.kept)


def study(
    out: Annotated[Path, "Folder for the world, the pairs, every ReID training and the table."],
    config: StudyConfig,
    json: Json = False,
) -> None:
    """Measure what the synthetic infrared is worth: ReID without, with grey, with ours, with the truth; rerun resumes."""
    from dive_fast.commands.reid_compare import show_comparison
    from dive_fast.experiments.study import run_study

    last = LastFile(out / "compare" / "compare.json", by_content=True)
    result = run_study(config, out)
    folders = {"world": out / "world", "pairs": out / "pairs", "model": config.model, "scorer": out / "scorer"}
    for point in result["curve"]:
        log(f"paired-only after {point['steps']:,} steps: mAP {point['map']:.1f}")
    cost = ", ".join(f"{stage} {seconds:,.0f}" for stage, seconds in result["seconds"].items())
    log(f"{sum(result['seconds'].values()):,.0f} seconds in all runs: {cost}")
    show_comparison(out / "compare", json, following("world quality", **folders), last.kept)
