"""Features and distances of other code, matched with a data set's images and scored under a protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.evaluation.evaluate import Labels, ReidResult, check_sides, score_distances, score_features
from dive_fast.reid.evaluation.feature_files import DISTANCE, SIDES, Exchanged, Side, file_name
from dive_fast.reid.evaluation.metrics import Drawn
from dive_fast.reid.evaluation.protocols import Permutations, Protocol, camera_number, draw_trials, drawn
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.types import InputError, Sample


def score_exchanged(
    exchanged: Exchanged,
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

    With `sides`, query and gallery of a data set below `root`, the file must be of all their images, and the protocol's
    trials are drawn. Without them the file's own labels and cameras count, its images being one trial "as given".
    """
    trials = [Drawn()]
    if sides is None:
        labels = exchanged.labels(cameras=protocol.rule != "regdb")
    else:
        check_sides(*sides, protocol)
        trials = drawn(draw_trials(*sides, protocol, permutations), protocol)
        exchanged, labels = aligned(exchanged, *sides, root), Labels.of(*sides)
    if what == "features":
        result = score_features(
            *exchanged.unit_features(), labels, trials, protocol, checkpoint=exchanged.sha256, dataset=dataset,
            rerank=rerank, source="features",
        )  # fmt: skip
    elif rerank is not None:
        raise InputError(
            "re-ranking compares queries with queries and gallery with gallery, so it needs features; give --features"
        )
    elif exchanged.distances is None:
        raise InputError(f"{exchanged.path} has no {DISTANCE}; distances are [queries, gallery] under that name")
    else:
        result = score_distances(
            exchanged.distances, labels, trials, protocol, checkpoint=exchanged.sha256, dataset=dataset
        )
    if sides is None:
        return replace(result, protocol={**result.protocol, "shots": "as given", "trials": 1, "draw": "as given"})
    return result


def aligned(exchanged: Exchanged, query: Sequence[Sample], gallery: Sequence[Sample], root: Path) -> Exchanged:
    """The same features or distances, row by row those of `query` and `gallery`, whose files lie below `root`.

    Files are matched by name where the file has names. Otherwise its order must be that of our readers, which identities
    and cameras are compared with, as far as it has them: labels may be others than ours (as RegDB's lists number people
    anew) if each stands for one person. Raises `InputError` for images that are missing, too many, or labelled differently.
    """
    rows = [
        _rows(side, name, samples, root, exchanged)
        for side, name, samples in zip((exchanged.query, exchanged.gallery), SIDES, (query, gallery), strict=True)
    ]
    sides = [_picked(side, order) for side, order in zip((exchanged.query, exchanged.gallery), rows, strict=True)]
    _check_people(sides, (query, gallery), exchanged.path)
    for side, name, samples in zip(sides, SIDES, (query, gallery), strict=True):
        _check_cameras(side, name, samples, exchanged.path)
    distances = exchanged.distances
    if distances is not None:
        for axis, order in enumerate(rows):
            distances = distances if order is None else np.take(distances, order, axis=axis)
    return Exchanged(exchanged.path, sides[0], sides[1], distances, exchanged.sha256)


def _rows(
    side: Side, name: str, samples: Sequence[Sample], root: Path, exchanged: Exchanged
) -> NDArray[np.intp] | None:
    """Which row of the file each sample is; None where they stand in the same order."""
    if side.names is None:
        known = side.features if side.features is not None else side.ids
        axis = SIDES.index(name)
        count = (
            len(known) if known is not None else 0 if exchanged.distances is None else exchanged.distances.shape[axis]
        )
        if count != len(samples):
            raise InputError(f"{exchanged.path} has {count:,} {name} images, the data set {len(samples):,}; give all, in "
                             f"the order of dive-fast (camera, identity, file) or with {name}_name")  # fmt: skip
        return None
    place = {text: row for row, text in enumerate(side.names)}
    wanted = [file_name(sample, root) for sample in samples]
    lacking, extra = [text for text in wanted if text not in place], len(side.names) - len(wanted)
    if lacking or extra or len(place) != len(side.names):
        first = f", first {lacking[0]}" if lacking else ""
        raise InputError(f"{exchanged.path}: {name}_name lists {len(side.names):,} images ({len(place):,} different), the "
                         f"data set has {len(wanted):,}, of which {len(lacking):,} are not listed{first}")  # fmt: skip
    return np.array([place[text] for text in wanted])


def _picked(side: Side, rows: NDArray[np.intp] | None) -> Side:
    if rows is None:
        return side
    return Side(
        None if side.features is None else side.features[rows],
        None if side.ids is None else tuple(side.ids[row] for row in rows),
        None if side.cams is None else side.cams[rows],
        None if side.names is None else tuple(side.names[row] for row in rows),
    )


def _check_people(sides: Sequence[Side], samples: Sequence[Sequence[Sample]], path: Path) -> None:
    """Each label of the file stands for one person of the data set, and each person has one label."""
    person: dict[str, str] = {}
    label: dict[str, str] = {}
    for side, name, listed in zip(sides, SIDES, samples, strict=True):
        for own, sample in zip(side.ids or (), listed, strict=side.ids is not None):
            if person.setdefault(own, sample.pid) != sample.pid or label.setdefault(sample.pid, own) != own:
                raise InputError(
                    f"{path}: {name}_label {own} is of {sample.path} (identity {sample.pid}), but label {own} stood for "
                    f"{person[own]} and that identity's label was {label.get(sample.pid, own)}; the "
                    "rows are in another order"
                )


def _check_cameras(side: Side, name: str, samples: Sequence[Sample], path: Path) -> None:
    for row, sample in enumerate(samples if side.cams is not None and not _is_regdb(samples) else ()):
        assert side.cams is not None
        if side.cams[row] != camera_number(sample.camera):
            raise InputError(f"{path}: {name}_cam says {side.cams[row]} for row {row}, but {sample.path} is by camera "
                             f"{sample.camera!r}; the rows are in another order")  # fmt: skip


def _is_regdb(samples: Sequence[Sample]) -> bool:
    return all(sample.camera.startswith("regdb-") for sample in samples)  # whose cameras other code numbers as it likes
