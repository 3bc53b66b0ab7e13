"""`dive-fast reid`: training and evaluating a cross-modality re-identification model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.commands.common import Device, Json, finish, torch_device
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.types import Sample

app = typer.Typer(help="Person re-identification, infrared to visible: what synthetic pairs are good for.")
Real = Annotated[Path | None, typer.Option(help="SYSU-MM01 tree; its train and val lists are used.")]
Synthetic = Annotated[list[Path] | None, typer.Option(help="Dataset folder from dive-fast synth; may be repeated.")]


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    real: Real = None,
    synthetic: Synthetic = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 500,
    identities: Annotated[int, typer.Option(min=1, help="Identities a batch.")] = 8,
    per_modality: Annotated[int, typer.Option(min=1, help="Visible images, and infrared ones, per identity.")] = 3,
    missing: Annotated[
        Literal["refuse", "drop", "visible"],
        typer.Option(help="What becomes of an identity without infrared: an error, left out, or visible only."),
    ] = "refuse",
    synthetic_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of a batch's identities that are synthetic.")
    ] = None,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on real and synthetic pairs; rerun to resume."""
    samples = _training_samples(real, synthetic or [])
    from dive_fast.reid.train import ReidConfig, train_reid

    config = ReidConfig(
        steps=steps,
        identities=identities,
        per_modality=per_modality,
        missing=missing,
        synthetic_share=synthetic_share,
        lr=lr,
        seed=seed,
    )
    train_reid(samples, config, out, device=torch_device(device))
    people = len({sample.pid for sample in samples})
    finish(
        f"checkpoint {out}: {len(samples):,} images of {people:,} identities",
        {"checkpoint": out, "images": len(samples), "identities": people},
        json,
    )


@app.command("eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, from dive-fast reid train.")],
    data: Annotated[Path, typer.Option(help="SYSU-MM01 tree; its test list is used, real images only.")],
    protocol: Annotated[
        Literal["pocket", "sysu"], typer.Option(help="pocket searches the whole gallery; sysu draws it, as published.")
    ] = "pocket",
    search: Annotated[Literal["all", "indoor"], typer.Option(help="sysu: which visible cameras.")] = "all",
    shots: Annotated[int, typer.Option(min=1, help="sysu: gallery images per identity and camera.")] = 1,
    trials: Annotated[int, typer.Option(min=1, help="sysu: gallery draws.")] = 10,
    permutations: Annotated[
        Path | None, typer.Option(help="sysu: the official rand_perm_cam.mat; by default seeded draws.")
    ] = None,
    flip: Annotated[bool, typer.Option(help="Average each embedding with its mirror image's.")] = True,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Evaluate a checkpoint: infrared query, visible gallery."""
    from dive_fast.data import read_sysu
    from dive_fast.reid.evaluate import evaluate_reid
    from dive_fast.reid.protocols import Protocol, read_permutations
    from dive_fast.types import to_dict

    samples = read_sysu(data, "test")
    rules = Protocol(protocol, search, shots, trials, "official" if permutations else "seeded")
    result = evaluate_reid(
        checkpoint,
        [sample for sample in samples if sample.modality == "ir"],
        [sample for sample in samples if sample.modality == "rgb"],
        protocol=rules,
        dataset=str(data),
        permutations=read_permutations(permutations) if permutations else None,
        flip=flip,
        device=torch_device(device),
    )
    finish(
        f"mAP {result.map:.2f}, rank-1 {result.rank1:.2f}, mINP {result.minp:.2f} ({protocol}, {result.valid_queries} queries)",
        to_dict(result),
        json,
    )


def _training_samples(real: Path | None, synthetic: list[Path]) -> list[Sample]:
    from dive_fast.data import merge_samples, read_sysu
    from dive_fast.synth import manifest

    if real is None and not synthetic:
        raise InputError("nothing to train on; give --real, --synthetic or both")
    sets = [read_sysu(real, "trainval")] if real is not None else []
    return merge_samples(*sets, *(manifest.samples(folder) for folder in synthetic))
