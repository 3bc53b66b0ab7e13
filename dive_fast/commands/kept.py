"""`dive-fast identity-kept` and `world quality`: whether generated images still show the person they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Dataset, Device, Json, PhotoSet, beside, finish, following, torch_device
from dive_fast.commands.reid_inputs import OtherPeople
from dive_fast.data.sets import SET_HELP
from dive_fast.progress import log
from dive_fast.settings import PositiveInt

Batch = Annotated[PositiveInt, "Images per call of the net."]


def identity_kept(
    dataset: Dataset,
    /,
    checkpoint: Annotated[Path, "ReID checkpoint folder, trained on real images of other people."],
    real: Annotated[
        Sequence[PhotoSet], f"True images to search in, of the dataset's identities and any others: {SET_HELP}"
    ],
    other_people: OtherPeople = False,
    batch: Batch = 128,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Search generated images among true ones of all identities: how often is the own person found first?"""
    from dive_fast.data.counts import align
    from dive_fast.quality import kept

    found = kept.identity_kept(
        dataset, checkpoint, real, device=torch_device(device), batch=batch, other_people=other_people
    )
    head = ("modality", "camera", "images", "identities", "own first, % by image", "by identity", "chance")
    lines: list[tuple[str, ...]] = [head]
    rows = []
    for side, by_camera in found.items():
        for camera, row in by_camera.items():
            counts = (f"{row.images:,}", f"{row.identities:,}")
            lines.append((side, camera, *counts, *kept.cells(row), f"{100 / row.gallery_identities:.1f}"))
            rows.append({"side": side, "camera": camera, **row.summary()})
    then = following("report", dataset, out=beside(dataset, "report"))
    finish(align(lines, "<<>>>>>"), {"dataset": dataset, "rows": rows}, json, then=then)


def world_quality(
    world: Annotated[Path, "World folder, from dive-fast world make."],
    pairs: Annotated[Path, "Dataset folder, from dive-fast synth, of the world's external identities."],
    model: Annotated[str, "Base or fused model folder, whose autoencoder is measured too; pocket is the shipped base."],
    scorer: Annotated[
        Path, "ReID checkpoint folder, trained on the world's test identities; trained now if it is not there."
    ],
    shots: Annotated[
        PositiveInt, "First true shots of each identity and camera, as arm oracle; the others are searched in."
    ] = 5,
    batch: Batch = 128,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure generated infrared beside the truth: identity kept, KID, FID, brightness, and the autoencoder's cost."""
    from tempfile import TemporaryDirectory

    from dive_fast.engines import load_engine
    from dive_fast.experiments.arms import autoencoded_infrared
    from dive_fast.experiments.scorer import picture_quality, table, train_scorer, true_infrared
    from dive_fast.reid.training.checkpoint import RECORD
    from dive_fast.synth import manifest

    chosen = torch_device(device)
    made = [s for s in manifest.read_pairs(pairs) if s.source == "synthetic" and s.modality == "ir"]
    engine, (truth, _) = load_engine(model, device=chosen), true_infrared(world, shots)
    if not (scorer / RECORD).exists():
        log(f"scorer {scorer} is not there or not finished: training it on the world's test identities")
        train_scorer(world, scorer, device=chosen)
    with TemporaryDirectory() as folder:
        arms = {"ours": made, "autoencoder": autoencoded_infrared(engine, truth, Path(folder))}
        quality = picture_quality(world, arms, scorer, shots=shots, device=chosen, batch=batch)
    then = following("report", pairs, out=beside(pairs, "report"))
    finish(table(quality), {"world": world, "pairs": pairs, **quality.summary()}, json, then=then)
