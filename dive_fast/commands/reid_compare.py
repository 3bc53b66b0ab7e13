"""`dive-fast reid compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dive_fast.commands.common import Device, Json, finish, names, numbers, torch_device
from dive_fast.commands.reid_inputs import joined, test_sides
from dive_fast.commands.reid_options import (
    Identities,
    Missing,
    PerModality,
    Permutations,
    ProtocolName,
    Rate,
    SamePeople,
    Search,
    Share,
    Shots,
    Steps,
    Trials,
)
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.types import Sample


def compare(
    data: Annotated[Path, typer.Option(help="SYSU-MM01 tree; every arm trains on it, its test list is searched.")],
    arm: Annotated[
        list[str],
        typer.Option(
            help="NAME or NAME=FOLDER[,FOLDER]: what an arm trains on beside --data, each a dataset from dive-fast "
            "synth, a SYSU-MM01 tree or a Market-1501 tree. Repeat for each arm."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for every training and the table.")],
    baseline: Annotated[str, typer.Option(help="Arm that the others are compared with.")] = "baseline",
    oracle: Annotated[str, typer.Option(help="Arm that sees the truth, for gap closed.")] = "oracle",
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated; every arm runs with each.")] = "0,1,2",
    same_people: SamePeople = False,
    steps: Steps = 500,
    identities: Identities = 8,
    per_modality: PerModality = 3,
    missing: Missing = "refuse",
    synthetic_share: Share = None,
    lr: Rate = 2e-3,
    protocol: ProtocolName = "pocket",
    search: Search = "all",
    shots: Shots = 1,
    trials: Trials = 10,
    permutations: Permutations = None,
    device: Device = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="Trainings at once, sharing the cores; on CPUs try 2 or more.")
    ] = 1,
    json: Json = False,
) -> None:
    """Train several training sets alike, with several seeds, and print one table; rerun to resume."""
    from dive_fast.reid.compare import compare as run
    from dive_fast.reid.protocols import Protocol, read_permutations
    from dive_fast.reid.train import ReidConfig

    query, gallery = test_sides(data)
    run(
        _arms(arm, data, same_people),
        query,
        gallery,
        ReidConfig(
            steps=steps,
            identities=identities,
            per_modality=per_modality,
            missing=missing,
            synthetic_share=synthetic_share,
            lr=lr,
        ),
        numbers(seeds),
        out,
        baseline=baseline,
        oracle=oracle,
        protocol=Protocol(protocol, search, shots, trials, "official" if permutations else "seeded"),
        permutations=read_permutations(permutations) if permutations else None,
        dataset=str(data),
        device=torch_device(device),
        workers=workers,
    )
    show_comparison(out, json)


def show_comparison(folder: Path, as_json: bool) -> None:
    """The table that a comparison left in `folder`, and its numbers."""
    from dive_fast.io import read_json

    record = read_json(folder / "compare.json", "comparison")
    scores = {arm["name"]: {"map": arm["map_mean"], "gap_closed": arm["gap_closed_mean"]} for arm in record["arms"]}
    finish((folder / "table.txt").read_text(encoding="utf-8").rstrip(), {"compare": folder, "arms": scores}, as_json)


def _arms(options: list[str], data: Path, same_people: bool) -> dict[str, list[Sample]]:
    """Every arm's training samples, --data's included."""
    arms: dict[str, list[Sample]] = {}
    for option in options:
        name, _, folders = option.partition("=")
        if name in arms:
            raise InputError(f"--arm {name!r} is given twice")
        arms[name] = joined([data], [Path(folder) for folder in names(folders or None)], same_people)
    return arms
