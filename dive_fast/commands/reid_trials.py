"""`dive-fast reid trials`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dive_fast.commands.common import Device, Json, finish, numbers, torch_device
from dive_fast.commands.reid_inputs import set_of
from dive_fast.commands.reid_options import Identities, PerModality, Rate, Rerank, Setting, Steps, Weights
from dive_fast.commands.reid_train import config_of
from dive_fast.types import InputError

# Options that are settings of the recipe by their own name; what is not given stays as the recipe has it.
_SETTINGS = ("steps", "epochs", "identities", "per_modality", "lr", "backbone", "weights", "seed")


def trials(
    context: typer.Context,
    data: Annotated[str, typer.Option(help="RegDB, as regdb:PATH.")],
    out: Annotated[Path, typer.Option(help="Folder for a checkpoint a trial and trials.json.")],
    chosen: Annotated[
        str, typer.Option("--trials", help="Trials, comma-separated, each with a model of its own.")
    ] = "1,2,3,4,5,6,7,8,9,10",
    direction: Annotated[
        Literal["both", "ir-to-visible", "visible-to-ir"], typer.Option(help="Which way the models are tested.")
    ] = "both",
    recipe: Annotated[
        Literal["pocket", "agw", "caj"],
        typer.Option(
            help="Settings to start from; the defaults below are pocket's, options that are given change a recipe."
        ),
    ] = "pocket",
    steps: Steps = 500,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs instead of steps.")] = None,
    identities: Identities = 8,
    per_modality: PerModality = 3,
    lr: Rate = 2e-3,
    backbone: Annotated[str, typer.Option(help="Backbone by name, as in dive-fast reid train.")] = "pocket",
    weights: Weights = None,
    setting: Setting = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random, alike in all trials.")] = 0,
    rerank: Rerank = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train and test RegDB's ten models, one a trial; rerun to resume."""
    from dive_fast.reid.evaluation.rerank import RerankConfig
    from dive_fast.reid.evaluation.trials import DIRECTIONS, run_trials
    from dive_fast.types import to_dict

    spec = set_of(data)
    if spec is None or spec.layout != "regdb":
        raise InputError(
            f"--data {data!r}: trials with a model each are RegDB's, as regdb:PATH; for others use reid eval"
        )
    report = run_trials(
        spec,
        config_of(context, _SETTINGS),
        out,
        trials=numbers(chosen),
        directions=DIRECTIONS if direction == "both" else (direction,),
        rerank=RerankConfig() if rerank else None,
        dataset=data,
        device=torch_device(device),
    )
    finish(report.describe(), to_dict(report), json)
