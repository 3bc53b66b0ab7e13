"""`dive-fast reid eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dive_fast.commands.common import Device, Json, finish, torch_device
from dive_fast.commands.reid_inputs import test_sides
from dive_fast.commands.reid_options import (
    Permutations,
    ProtocolName,
    Search,
    Shots,
    Trials,
)

if TYPE_CHECKING:
    pass


def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, from dive-fast reid train.")],
    data: Annotated[Path, typer.Option(help="SYSU-MM01 tree; its test list is used, real images only.")],
    protocol: ProtocolName = "pocket",
    search: Search = "all",
    shots: Shots = 1,
    trials: Trials = 10,
    permutations: Permutations = None,
    flip: Annotated[bool, typer.Option(help="Average each embedding with its mirror image's.")] = True,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Evaluate a checkpoint: infrared query, visible gallery."""
    from dive_fast.reid.evaluate import evaluate_reid
    from dive_fast.reid.protocols import Protocol, read_permutations
    from dive_fast.types import to_dict

    query, gallery = test_sides(data)
    result = evaluate_reid(
        checkpoint,
        query,
        gallery,
        protocol=Protocol(protocol, search, shots, trials, "official" if permutations else "seeded"),
        dataset=str(data),
        permutations=read_permutations(permutations) if permutations else None,
        flip=flip,
        device=torch_device(device),
    )
    finish(
        f"mAP {result.map:.2f}, rank-1 {result.rank1:.2f}, mINP {result.minp:.2f} "
        f"({protocol}, {result.valid_queries:,} queries)",
        to_dict(result),
        json,
    )
