"""Features and distances of other code, matched with a data set's images and scored under a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.evaluation.feature_files import DISTANCE, PARTS, SIDES, FeatureFile, file_name
from dive_fast.reid.evaluation.protocols import Permutations, Protocol, Trial, camera_number
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.reid.evaluation.results import ReidResult
from dive_fast.reid.evaluation.task import RetrievalTask
from dive_fast.types import InputError, Sample


def score_feature_file(
    file: FeatureFile,
    what: Literal["features", "distances"],
    protocol: Protocol,
    *,
    dataset: str,
    sides: tuple[Sequence[Sample], Sequence[Sample]] | None = None,
    root: Path = Path(),
    permutations: Permutations | None = None,
    rerank: RerankConfig | None = None,
) -> ReidResult:
    """Scores other code's features (by cosine distance) or distances under a protocol.

    `sides` are query and gallery of a data set below `root`: the file must be of all their images, and the protocol draws
    the trials. Without `sides` the file's labels and cameras count, and its images are one trial "as given".
    """
    if sides is None:
        task = RetrievalTask(file.labels(cameras=protocol.rule != "regdb"), [Trial()], protocol, dataset)
    else:
        task = RetrievalTask.from_samples(*sides, protocol, permutations, dataset)
        file = aligned(file, *sides, root)
    if what == "features":
        query, gallery = file.unit_features()
        scores = task.score_features(query, gallery, rerank)
    elif rerank is not None:
        raise InputError("--rerank compares features within each side, and distances lack them; give --features")
    else:
        scores = task.score_distances(file.require(DISTANCE))
    result = task.result(scores, file.sha256, rerank=rerank, source=what)
    if sides is None:
        return replace(result, protocol={**result.protocol, "shots": "as given", "trials": 1, "draw": "as given"})
    return result


def aligned(file: FeatureFile, query: Sequence[Sample], gallery: Sequence[Sample], root: Path) -> FeatureFile:
    """Returns the same features or distances with the rows of `query` and `gallery`, whose files lie below `root`.

    Rows are matched by file name where the file has names. Otherwise the file must be in the order of the readers, which
    its identities and cameras confirm, if present. Its labels may differ from the data set's, as RegDB's lists do, if each
    stands for one identity. Raises `InputError` for images that are missing, too many, or labelled differently.
    """
    arrays = dict(file.arrays)
    for axis, (side, samples) in enumerate(zip(SIDES, (query, gallery), strict=True)):
        rows = _rows(file, axis, samples, root)
        if rows is not None:
            arrays |= {key: arrays[key][rows] for part in PARTS if (key := f"{side}_{part}") in arrays}
            if DISTANCE in arrays:
                arrays[DISTANCE] = np.take(arrays[DISTANCE], rows, axis=axis)
    found = replace(file, arrays=arrays)
    _check_identities(found, (query, gallery))
    for side, samples in zip(SIDES, (query, gallery), strict=True):
        _check_cameras(found, f"{side}_cam", samples)
    return found


def _rows(file: FeatureFile, axis: int, samples: Sequence[Sample], root: Path) -> NDArray[np.intp] | None:
    """The file's row of each sample; None where both are in the same order."""
    side = SIDES[axis]
    if f"{side}_name" not in file.arrays:
        counts = [len(file.arrays[key]) for part in PARTS if (key := f"{side}_{part}") in file.arrays]
        counts += [file.arrays[DISTANCE].shape[axis]] if DISTANCE in file.arrays else [0]
        if counts[0] != len(samples):
            raise InputError(
                f"{file.path} has {counts[0]:,} {side} images, the data set {len(samples):,}; give all, sorted by camera, "
                f"identity and file, or with {side}_name"
            )
        return None
    names = file.arrays[f"{side}_name"].tolist()
    place = {name: row for row, name in enumerate(names)}
    wanted = [file_name(sample, root) for sample in samples]
    missing = [name for name in wanted if name not in place]
    if missing or len(names) != len(wanted) or len(place) != len(names):
        first = f", first {missing[0]}" if missing else ""
        raise InputError(
            f"{file.path}: {side}_name lists {len(names):,} images ({len(place):,} different), the data set has "
            f"{len(wanted):,}, of which {len(missing):,} are not listed{first}"
        )
    return np.array([place[name] for name in wanted])


def _check_identities(file: FeatureFile, sides: Sequence[Sequence[Sample]]) -> None:
    """Each label of the file must stand for one identity of the data set, and each identity must have one label."""
    pids: dict[str, str] = {}
    labels: dict[str, str] = {}
    for side, samples in zip(SIDES, sides, strict=True):
        own = file.arrays.get(f"{side}_label")
        for label, sample in zip(() if own is None else own.tolist(), samples, strict=own is not None):
            if pids.setdefault(label, sample.pid) != sample.pid or labels.setdefault(sample.pid, label) != label:
                raise InputError(
                    f"{file.path}: {side}_label {label} is of {sample.path} (identity {sample.pid}), but earlier rows pair "
                    "them otherwise; the rows are in another order"
                )


def _check_cameras(file: FeatureFile, key: str, samples: Sequence[Sample]) -> None:
    if key not in file.arrays or all(sample.camera.startswith("regdb-") for sample in samples):
        return  # other code numbers RegDB's cameras differently
    for row, (number, sample) in enumerate(zip(file.arrays[key].tolist(), samples, strict=True)):
        if number != camera_number(sample.camera):
            raise InputError(
                f"{file.path}: {key} says {number} for row {row}, but {sample.path} is by camera {sample.camera!r}; the "
                "rows are in another order"
            )
