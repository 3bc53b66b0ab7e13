"""`dive-fast reid train`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dive_fast.commands.common import Device, Json, finish, torch_device
from dive_fast.commands.reid_inputs import joined
from dive_fast.commands.reid_options import (
    Identities,
    Missing,
    PerModality,
    Rate,
    SamePeople,
    Share,
    Steps,
)
from dive_fast.types import InputError

if TYPE_CHECKING:
    pass


def train(
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    real: Annotated[Path | None, typer.Option(help="SYSU-MM01 tree; its train and val lists are used.")] = None,
    synthetic: Annotated[
        list[Path] | None, typer.Option(help="Dataset folder from dive-fast synth; may be repeated.")
    ] = None,
    same_people: SamePeople = False,
    steps: Steps = 500,
    identities: Identities = 8,
    per_modality: PerModality = 3,
    missing: Missing = "refuse",
    synthetic_share: Share = None,
    lr: Rate = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on real and synthetic pairs; rerun to resume."""
    from dive_fast.reid.train import ReidConfig, train_reid

    if real is None and not synthetic:
        raise InputError("nothing to train on; give --real, --synthetic or both")
    samples = joined([real] if real is not None else [], synthetic or [], same_people)
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
