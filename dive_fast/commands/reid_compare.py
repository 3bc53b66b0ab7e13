"""`dive-fast reid compare`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.commands.common import Device, Json, finish, numbers, say, torch_device
from dive_fast.commands.reid_inputs import joined, protocol_of, test_sides
from dive_fast.commands.reid_options import (
    Backbone,
    Direction,
    Draw,
    Identities,
    Missing,
    Mode,
    PerModality,
    Permutations,
    Precision,
    ProtocolName,
    Rate,
    SamePeople,
    Search,
    Setting,
    Share,
    Shots,
    Steps,
    Trials,
    Weights,
)
from dive_fast.commands.reid_train import config_of
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.types import Sample

ONLY = "only:"
_SETTINGS = (
    "steps", "epochs", "identities", "per_modality", "missing", "synthetic_share", "lr", "backbone", "weights", "precision",
)  # fmt: skip


def compare(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help="What arms share for training, and whose test list is searched: a SYSU-MM01 tree, or sysu:PATH, llcm:PATH."
        ),
    ],
    arm: Annotated[
        list[str],
        typer.Option(
            help="NAME or NAME=FOLDER[,FOLDER]: what an arm trains on beside --data, each a dataset from dive-fast "
            "synth, a SYSU-MM01 tree or a Market-1501 tree. NAME=only:FOLDER[,FOLDER] trains without --data, as "
            "synthetic-only=only:runs/pairs. Repeat for each arm."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for every training and the table.")],
    baseline: Annotated[str, typer.Option(help="Arm that the others are compared with.")] = "baseline",
    oracle: Annotated[str, typer.Option(help="Arm that sees the truth, for gap closed.")] = "oracle",
    seeds: Annotated[
        str,
        typer.Option(
            help="Seeds, comma-separated; every arm runs with each. Three are few for a test of significance."
        ),
    ] = "0,1,2",
    same_people: SamePeople = False,
    recipe: Annotated[
        Literal["pocket", "agw", "caj"],
        typer.Option(help="Settings of every training, see reid train; only options that are given change a recipe."),
    ] = "pocket",
    steps: Steps = 500,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs instead of steps; an arm with more images has more steps.")
    ] = None,
    identities: Identities = 8,
    per_modality: PerModality = 3,
    missing: Missing = "refuse",
    synthetic_share: Share = None,
    lr: Rate = 2e-3,
    backbone: Backbone = "pocket",
    weights: Weights = None,
    precision: Precision = "fp32",
    setting: Setting = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for files of the decoded images, for sets that memory cannot hold.")
    ] = None,
    protocol: ProtocolName = "pocket",
    search: Search = "all",
    shots: Shots = 1,
    trials: Trials = 10,
    draw: Draw = "seeded",
    permutations: Permutations = None,
    direction: Direction = "ir-to-visible",
    mode: Mode = "standard",
    device: Device = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="Trainings at once, sharing the cores; on CPUs try 2 or more.")
    ] = 1,
    json: Json = False,
) -> None:
    """Train several training sets alike, with several seeds, and print one table with significance; rerun to resume."""
    from dive_fast.reid.comparison.compare import compare as run

    config = config_of(context, _SETTINGS)
    arms, apart = _arms(arm, data, same_people)
    if baseline not in arms:
        say(f"no arm is called {baseline!r} (--baseline), so there is nothing to compare with: scores only")
    rules, tables = protocol_of(data, protocol, search, shots, trials, draw, permutations, direction, mode)
    query, gallery = test_sides(data, rules)
    run(
        arms,
        query,
        gallery,
        config,
        numbers(seeds),
        out,
        baseline=baseline,
        oracle=oracle,
        apart=apart,
        protocol=rules,
        permutations=tables,
        dataset=data,
        device=torch_device(device),
        workers=workers,
        cache=cache,
    )
    show_comparison(out, json)


def show_comparison(folder: Path, as_json: bool) -> None:
    """The table that a comparison left in `folder`, and its numbers."""
    from dive_fast.io import read_json

    record = read_json(folder / "compare.json", "comparison")
    scores = {arm["name"]: {"map": arm["map_mean"], "gap_closed": arm["gap_closed_mean"]} for arm in record["arms"]}
    for arm in record["arms"]:
        if arm.get("significance") is not None:
            scores[arm["name"]]["verdict"] = arm["significance"]["verdict"]
    finish((folder / "table.txt").read_text(encoding="utf-8").rstrip(), {"compare": folder, "arms": scores}, as_json)


def _arms(options: list[str], data: str, same_people: bool) -> tuple[dict[str, list[Sample]], list[str]]:
    """Every arm's training samples, and the names of those that are without --data's."""
    arms: dict[str, list[Sample]] = {}
    apart = []
    for option in options:
        name, _, given = option.partition("=")
        if name in arms:
            raise InputError(f"--arm {name!r} is given twice")
        shared = [data]
        if given.startswith(ONLY):
            apart.append(name)
            shared, given = [], given.removeprefix(ONLY)
            if not given:
                raise InputError(f"--arm {option!r} trains on nothing; name its folders, as {name}=only:runs/pairs")
        arms[name] = joined(shared, _folders(given), same_people)
    return arms, apart


def _folders(text: str) -> list[str]:
    """The comma-separated folders or sets of an arm; a comma before a set's option does not part them."""
    parts = re.split(r",(?!(?:prefix|camera|split|trial)=)", text) if text else []
    if not all(part.strip() for part in parts):
        raise InputError(f"--arm has an empty folder: {text!r}")
    return [part.strip() for part in parts]
