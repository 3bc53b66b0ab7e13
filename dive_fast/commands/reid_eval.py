"""`dive-fast reid eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dive_fast.commands.common import Device, Json, finish, torch_device
from dive_fast.commands.reid_inputs import (
    Name,
    OtherPeople,
    Permutations,
    Rerank,
    Rules,
    Test,
    label,
    protocol_from,
    test_set,
    test_sides,
)
from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.types import InputError, to_dict

if TYPE_CHECKING:
    from dive_fast.data.sets import SetSpec
    from dive_fast.reid.evaluation.protocols import Permutations as Tables
    from dive_fast.reid.evaluation.rerank import RerankConfig
    from dive_fast.reid.evaluation.results import ReidResult


def evaluate(
    rules: Rules,
    checkpoint: Annotated[Path | None, "Checkpoint folder, from dive-fast reid train."] = None,
    test: Test | None = None,
    features: Annotated[
        Path | None,
        "Score features of other code instead: a .mat file or a folder of .npy files with query_f, gallery_f, query_label, "
        "gallery_label, query_cam, gallery_cam. Without --test they are one trial as they are.",
    ] = None,
    distances: Annotated[
        Path | None, "Score distances of other code instead: likewise with 'distance', or one .npy file and --test."
    ] = None,
    protocol: Name = "pocket",
    permutations: Permutations = None,
    rerank: Rerank = False,
    other_people: OtherPeople = False,
    flip: Annotated[bool, "Average each embedding with its mirror image's."] = True,
    export: Annotated[
        Path | None, "Also write features, labels, cameras and distances: a .mat file, or a folder of .npy files."
    ] = None,
    out: Annotated[Path | None, "JSON file for the result."] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Evaluate a checkpoint, or features or distances of other code, under a named protocol."""
    from dive_fast.io import write_json
    from dive_fast.reid.evaluation.rerank import RerankConfig

    sources = {"--checkpoint": checkpoint, "--features": features, "--distances": distances}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"give one of --checkpoint, --features and --distances, got {' and '.join(given) or 'none'}")
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder; name a JSON file")
    if checkpoint is None and export is not None:
        raise InputError("--export writes a checkpoint's features; give --checkpoint")
    searched = None if test is None else test_set(test)
    chosen, tables = protocol_from(searched, protocol, rules, permutations)
    config = RerankConfig() if rerank else None
    if checkpoint is not None:
        if searched is None:
            raise InputError("--checkpoint requires images to test on; name the set with --test")
        computes_on = torch_device(device)
        result = _checkpoint(checkpoint, searched, chosen, tables, config, flip, computes_on, export, other_people)
    else:
        result = _other_code(features, distances, searched, chosen, tables, config)
    if out is not None:
        write_json(out, to_dict(result))
    finish(result.describe(), to_dict(result), json)


def _checkpoint(
    checkpoint: Path,
    spec: SetSpec,
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

    if export is not None:
        check_target(export)
    query, gallery = test_sides(spec, protocol)
    name = label(spec)
    task = RetrievalTask.from_samples(query, gallery, protocol, tables, name)
    found = extract(checkpoint, query, gallery, flip=flip, device=device, other_people=other_people)
    if export is not None:
        metadata = {"dataset": name, "protocol": protocol.metadata(), "checkpoint": found.checkpoint, "flip": flip}
        write_features(export, query, gallery, found, spec.root, metadata)
    scores = task.score_features(found.query, found.gallery, rerank)
    return task.result(scores, found.checkpoint, flip=flip, rerank=rerank, other_people=other_people)


def _other_code(
    features: Path | None,
    distances: Path | None,
    spec: SetSpec | None,
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
        dataset=label(spec) if spec is not None else str(file),
        sides=None if spec is None else test_sides(spec, protocol),
        root=Path() if spec is None else spec.root,
        permutations=tables,
        rerank=rerank,
    )
