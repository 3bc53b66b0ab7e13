"""`dive-fast reid eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dive_fast.commands.common import Device, Json, finish, torch_device
from dive_fast.commands.reid_inputs import protocol_of, test_set, test_sides
from dive_fast.commands.reid_options import (
    Direction,
    Draw,
    Flip,
    Mode,
    OtherPeople,
    Permutations,
    ProtocolName,
    Rerank,
    Search,
    Shots,
    Trials,
)
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.reid.evaluation.protocols import Permutations as Tables
    from dive_fast.reid.evaluation.protocols import Protocol
    from dive_fast.reid.evaluation.rerank import RerankConfig
    from dive_fast.reid.evaluation.results import ReidResult


def evaluate(
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint folder, from dive-fast reid train.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="What to test on, real images only: a SYSU-MM01 tree, or sysu:PATH, regdb:PATH,trial=N, llcm:PATH."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Score features of other code instead: a .mat file or a folder of .npy files with query_f, gallery_f, "
            "query_label, gallery_label, query_cam, gallery_cam. Without --data these are one trial as they stand."
        ),
    ] = None,
    distances: Annotated[
        Path | None,
        typer.Option(
            help="Score distances of other code instead: likewise with 'distance', or one .npy file and --data."
        ),
    ] = None,
    protocol: ProtocolName = "pocket",
    search: Search = "all",
    shots: Shots = 1,
    trials: Trials = 10,
    draw: Draw = "seeded",
    permutations: Permutations = None,
    direction: Direction = "ir-to-visible",
    mode: Mode = "standard",
    rerank: Rerank = False,
    other_people: OtherPeople = False,
    flip: Flip = True,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Also write features, labels, cameras and distances: a .mat file, or a folder of .npy files."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Evaluate a checkpoint, or features or distances of other code, under a named protocol."""
    from dive_fast.io import write_json
    from dive_fast.reid.evaluation.rerank import RerankConfig
    from dive_fast.types import to_dict

    given = [name for name, value in (("--checkpoint", checkpoint), ("--features", features), ("--distances", distances))
             if value is not None]  # fmt: skip
    if len(given) != 1:
        raise InputError(f"give one of --checkpoint, --features and --distances, got {' and '.join(given) or 'none'}")
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder; name a JSON file")
    rules, tables = protocol_of(data, protocol, search, shots, trials, draw, permutations, direction, mode)
    config = RerankConfig() if rerank else None
    if checkpoint is not None:
        result = _checkpoint(checkpoint, data, rules, tables, config, flip, torch_device(device), export, other_people)
    elif export is not None:
        raise InputError("--export writes a checkpoint's features; give --checkpoint")
    else:
        result = _other_code(features, distances, data, rules, tables, config)
    if out is not None:
        write_json(out, to_dict(result))
    finish(result.describe(), to_dict(result), json)


def _checkpoint(
    checkpoint: Path,
    data: str | None,
    protocol: Protocol,
    tables: Tables | None,
    rerank: RerankConfig | None,
    flip: bool,
    device: str,
    export: Path | None,
    other_people: bool,
) -> ReidResult:
    from dive_fast.reid.evaluation.evaluate import extract
    from dive_fast.reid.evaluation.feature_files import check_target, write_features
    from dive_fast.reid.evaluation.task import RetrievalTask

    if data is None:
        raise InputError("--checkpoint needs images to test on; name the data set with --data")
    if export is not None:
        check_target(export)
    query, gallery = test_sides(data, protocol)
    task = RetrievalTask.from_samples(query, gallery, protocol, tables, data)
    found = extract(checkpoint, query, gallery, flip=flip, device=device, other_people=other_people)
    if export is not None:
        metadata = {"dataset": data, "protocol": protocol.metadata(), "checkpoint": found.checkpoint, "flip": flip}
        write_features(export, query, gallery, found, test_set(data).root, metadata)
    scores = task.score_features(found.query, found.gallery, rerank)
    return task.result(scores, found.checkpoint, flip=flip, rerank=rerank, other_people=other_people)


def _other_code(
    features: Path | None,
    distances: Path | None,
    data: str | None,
    protocol: Protocol,
    tables: Tables | None,
    rerank: RerankConfig | None,
) -> ReidResult:
    from dive_fast.reid.evaluation.feature_files import read_features
    from dive_fast.reid.evaluation.interop import score_feature_file

    file = features if features is not None else distances
    assert file is not None
    return score_feature_file(
        read_features(file),
        "features" if features is not None else "distances",
        protocol,
        dataset=data if data is not None else str(file),
        sides=None if data is None else test_sides(data, protocol),
        root=Path() if data is None else test_set(data).root,
        permutations=tables,
        rerank=rerank,
    )
