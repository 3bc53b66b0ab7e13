"""Rank metrics of cross-camera retrieval: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dive_fast.reid.evaluation.protocols import Rule, Trial
from dive_fast.types import InputError

RULES: tuple[Rule, ...] = get_args(Rule)
Index = NDArray[np.intp]
Rows = Callable[[slice], NDArray[Any]]
CHUNK_CELLS = 2_000_000  # distances that `score_trials` holds at a time


@dataclass(frozen=True)
class RankMetrics:
    """Retrieval quality, all in 0..1, averaged over the valid queries.

    `cmc` float64 [max_rank] (`cmc[0]` is rank-1), `map` mean average precision, `minp` mean inverse negative penalty
    (AGW, arXiv:2001.04193), `valid_queries` the number of queries whose identity is in their gallery.
    """

    cmc: NDArray[np.float64]
    map: float
    minp: float
    valid_queries: int


@dataclass(frozen=True)
class QueryScores:
    """Scores of each query, float64 [Q] each, NaN for an invalid query.

    `first`: images (identities, where the rule counts each once) that rank before the first hit; `ap`: average precision;
    `inp`: positives over the rank of the last one.
    """

    first: NDArray[np.float64]
    ap: NDArray[np.float64]
    inp: NDArray[np.float64]


def evaluate(
    distances: ArrayLike,
    query_ids: ArrayLike | Sequence[str],
    gallery_ids: ArrayLike | Sequence[str],
    query_cams: ArrayLike | None = None,
    gallery_cams: ArrayLike | None = None,
    *,
    protocol: Rule = "sysu",
    max_rank: int = 20,
) -> RankMetrics:
    """Returns CMC, mAP and mINP of a distance matrix under a data set's rule.

    `distances` [Q, G], smaller is nearer, equal distances rank in gallery order; ids [Q] and [G] integers or strings;
    cameras [Q] and [G] integers (not needed by "regdb").
    - "sysu": a camera-3 query ignores camera-2 gallery items (same place); the CMC counts each gallery identity once.
    - "llcm": a query ignores gallery items of its identity AND camera; the CMC counts each gallery identity once.
    - "regdb": a query ignores nothing; plain CMC.

    A query without its identity in the remaining gallery is invalid and left out of the averages.
    Raises `InputError` for NaN distances, shapes that do not fit, missing cameras, and when no query is valid.
    """
    if max_rank < 1:
        raise InputError(f"max_rank must be at least 1, got {max_rank}")
    cameras = query_cams, gallery_cams
    (scores,) = score_trials(distances, query_ids, gallery_ids, *cameras, trials=[Trial()], protocol=protocol)
    return summary(scores, max_rank, protocol)


def summary(scores: QueryScores, max_rank: int = 20, protocol: Rule = "sysu") -> RankMetrics:
    """Returns the averages over the valid queries; raises `InputError` without any."""
    valid = ~np.isnan(scores.first)
    count = int(valid.sum())
    if not count:
        raise InputError(
            f"no valid query: by rule {protocol!r} none of the {len(valid)} has its identity in its gallery"
        )
    cmc = (scores.first[valid][:, None] < np.arange(1, max_rank + 1)).mean(axis=0)
    return RankMetrics(cmc, float(scores.ap[valid].mean()), float(scores.inp[valid].mean()), count)


def score_trials(
    distances: ArrayLike | Rows,
    query_ids: ArrayLike | Sequence[str],
    gallery_ids: ArrayLike | Sequence[str],
    query_cams: ArrayLike | None = None,
    gallery_cams: ArrayLike | None = None,
    *,
    trials: Sequence[Trial],
    protocol: Rule = "sysu",
) -> list[QueryScores]:
    """Returns the scores of each trial's queries, in the trial's order; arguments as in `evaluate`.

    `distances` may be a function that returns the rows [q, G] of a slice. Beside the arrays given, memory is bounded by
    `CHUNK_CELLS` whatever Q and the number of trials. Measured: 17 MB for float32 and 33 MB for float64 distances, 81 MB
    when all are equal, 180 MB when all images are of one identity as well.
    """
    if protocol not in RULES:
        raise InputError(f"protocol must be one of {', '.join(RULES)}, got {protocol!r}")
    ids = [_checked_ids(name, i) for name, i in (("query_ids", query_ids), ("gallery_ids", gallery_ids))]
    if (ids[0].dtype.kind == "U") != (ids[1].dtype.kind == "U"):
        raise InputError(f"query_ids are {ids[0].dtype} but gallery_ids are {ids[1].dtype}; give both the same type")
    shape = (len(ids[0]), len(ids[1]))
    rows_of = distances if callable(distances) else _rows_of(distances, shape)
    if not all(shape):
        raise InputError(f"there are {shape[0]} queries and {shape[1]} gallery images; neither may be empty")
    cams = _checked_cams(query_cams, gallery_cams, shape) if protocol != "regdb" else None
    _, codes = np.unique(np.concatenate(ids), return_inverse=True)
    labels = _Labels(codes[: shape[0]], codes[shape[0] :], cams, protocol)
    scorers = [_TrialScorer(trial, labels) for trial in trials]
    for start in range(0, shape[0], rows := max(1, CHUNK_CELLS // shape[1])):
        part = slice(start, min(start + rows, shape[0]))
        block = _checked_block(rows_of(part), part, shape[1])
        for scorer in scorers:
            scorer.add(block, part)
    return [scorer.scores for scorer in scorers]


@dataclass(frozen=True)
class _Labels:
    """Both sides' identities as codes, their cameras, and the rule."""

    query: Index
    gallery: Index
    cams: tuple[NDArray[Any], NDArray[Any]] | None
    rule: Rule


class _TrialScorer:
    """The columns that each query of a trial sees, and the scores so far."""

    def __init__(self, trial: Trial, labels: _Labels):
        self._labels = labels
        query = _all_or(trial.query, len(labels.query), "query")
        gallery = _all_or(trial.gallery, len(labels.gallery), "gallery")
        by_row = np.argsort(query, kind="stable")
        self._rows, self._places = query[by_row], by_row  # ascending rows, and their places in the trial
        self._groups = list(_groups(self._rows, gallery, labels))
        self.scores = QueryScores(*np.full((3, len(query)), np.nan))

    def add(self, block: NDArray[Any], part: slice) -> None:
        """Scores the trial's queries among the rows `part`, whose distances are `block`."""
        for members, seen in self._groups:
            rows = self._rows[members]
            chosen = slice(*np.searchsorted(rows, (part.start, part.stop)))
            rows = rows[chosen]
            if len(rows) and len(seen.order):
                places = self._places[members][chosen]
                values = _picked(block, rows - part.start, seen.order)
                found = _scores(values, rows, seen, self._labels)
                self.scores.first[places], self.scores.ap[places], self.scores.inp[places] = found


def _all_or(chosen: Sequence[int] | Index | None, count: int, side: str) -> Index:
    if chosen is None:
        return np.arange(count)
    index = np.asarray(chosen, np.intp)
    if index.ndim != 1 or (len(index) and not 0 <= index.min() <= index.max() < count) or len(set(index)) < len(index):
        raise InputError(f"a trial's {side} rows must be different numbers from 0 to {count - 1}")
    return index


@dataclass(frozen=True)
class _Seen:
    """The gallery columns that a group of queries sees, sorted by identity: one segment per identity.

    `order` columns; `places` their places in the trial's gallery, which rank equal distances; `codes` the identities
    present, ascending; `starts` [identities + 1] the segments' bounds.
    """

    order: Index
    places: Index
    codes: Index
    starts: Index


def _groups(rows: Index, gallery: Index, labels: _Labels) -> Iterator[tuple[Index, _Seen]]:
    """Yields the places in `rows` of queries that see the same columns, and these columns."""
    if labels.rule != "sysu" or labels.cams is None:
        yield np.arange(len(rows)), _seen(gallery, labels)
        return
    blind = labels.cams[0][rows] == 3
    yield np.flatnonzero(~blind), _seen(gallery, labels)
    yield np.flatnonzero(blind), _seen(gallery[labels.cams[1][gallery] != 2], labels)


def _seen(columns: Index, labels: _Labels) -> _Seen:
    places = np.argsort(labels.gallery[columns], kind="stable")
    order = columns[places]
    codes, starts = np.unique(labels.gallery[order], return_index=True)
    return _Seen(order, places, codes, np.append(starts, len(order)))


def _picked(block: NDArray[Any], rows: Index, columns: Index) -> NDArray[Any]:
    """A copy of these rows and columns, the smaller selection first."""
    if len(rows) == len(block):
        return np.take(block, columns, axis=1)
    if 2 * len(columns) < block.shape[1]:
        return np.take(block, columns, axis=1)[rows]
    return np.take(block[rows], columns, axis=1)


def _scores(
    values: NDArray[Any], rows: Index, seen: _Seen, labels: _Labels
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """`QueryScores` of the queries `rows`, whose distances to `seen` are `values` [q, columns] (overwritten where they tie).

    Only the places of positives count, so each row is sorted by value alone, and each positive is looked up in it.
    """
    count = len(rows)
    segment = np.minimum(np.searchsorted(seen.codes, labels.query[rows]), len(seen.codes) - 1)
    known = seen.codes[segment] == labels.query[rows]
    sizes = np.where(known, seen.starts[segment + 1] - seen.starts[segment], 0)
    row = np.repeat(np.arange(count), sizes)  # [positives]
    column = np.arange(len(row)) + np.repeat(seen.starts[segment] - (np.cumsum(sizes) - sizes), sizes)
    place, own = _places(values, row, column, seen)

    order = np.argsort(row * values.shape[1] + place)
    row, column, place, own = row[order], column[order], place[order], own[order]
    if labels.rule == "llcm" and labels.cams is not None:
        removed = labels.cams[0][rows][row] == labels.cams[1][seen.order[column]]
        before = np.cumsum(removed) - removed  # of this query and of those above
        place = place - (before - before[np.searchsorted(row, row)])
        row, place, own = row[~removed], place[~removed], own[~removed]

    positives = np.bincount(row, minlength=count)
    valid = positives > 0
    starts = np.cumsum(positives) - positives
    number = np.arange(len(row)) - starts[row] + 1
    first, ap, inp = np.full((3, count), np.nan)
    ap[valid] = np.bincount(row, number / (place + 1), count)[valid] / positives[valid]
    inp[valid] = positives[valid] / (place[(starts + positives - 1)[valid]] + 1)
    if labels.rule == "regdb":
        first[valid] = place[starts[valid]]
    else:
        best = np.minimum.reduceat(values, seen.starts[:-1], axis=1)[valid]  # [valid, identities]
        nearer = best < own[starts[valid]][:, None]
        nearer[np.arange(len(nearer)), segment[valid]] = False  # images of the query's own that were removed
        first[valid] = np.count_nonzero(nearer, axis=1)
    return first, ap, inp


def _places(values: NDArray[Any], row: Index, column: Index, seen: _Seen) -> tuple[Index, NDArray[Any]]:
    """The place (from 0) of each `values[row, column]` in its row, and the value.

    Rows in which such a value has an equal get places instead of values, equal values in gallery order.
    """
    own = values[row, column]
    ranked = np.sort(values, axis=1)
    width = values.shape[1]
    place = _lower_bound(ranked, row, own)
    tied = (place + 1 < width) & (ranked[row, np.minimum(place + 1, width - 1)] == own)
    if tied.any():
        again = np.unique(row[tied])
        given = np.empty_like(seen.places)
        given[seen.places] = np.arange(width)
        order = np.argsort(values[again][:, given], axis=1, kind="stable")
        places = np.empty_like(order)
        np.put_along_axis(places, order, np.arange(width)[None], axis=1)
        values[again] = places[:, seen.places]
        redone = np.isin(row, again)
        own[redone] = values[row[redone], column[redone]]
        place[redone] = own[redone]
    return place, own


def _lower_bound(ranked: NDArray[Any], row: Index, value: NDArray[Any]) -> Index:
    """How many entries of `ranked[row]` (ascending) are below `value`, for all pairs at once, by bisection."""
    width = ranked.shape[1]
    low, high = np.zeros(len(row), np.intp), np.full(len(row), width)
    for _ in range(width.bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (ranked[row, np.minimum(middle, width - 1)] < value)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low


def _rows_of(distances: ArrayLike, shape: tuple[int, int]) -> Rows:
    matrix = np.asarray(distances)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"distances must be [queries, gallery] and not empty, got shape {list(matrix.shape)}")
    for name, length, expected in (("query_ids", shape[0], len(matrix)), ("gallery_ids", shape[1], matrix.shape[1])):
        if length != expected:
            raise InputError(f"{name} must have shape [{expected}] to fit the distances, got [{length}]")
    return lambda part: matrix[part]


def _checked_block(block: NDArray[Any], part: slice, width: int) -> NDArray[Any]:
    """The rows as float32, float64 or int64, each of which holds places exactly."""
    if block.dtype.kind not in "fiub":
        raise InputError(f"distances must be numbers, got dtype {block.dtype}")
    if block.dtype.kind in "iub":
        return block.astype(np.int64)
    broken = int(np.isnan(block.max(axis=1)).sum())
    if broken:
        raise InputError(f"distances hold NaN in {broken} of the rows {part.start} to {part.stop - 1}")
    return block.astype(np.float32 if block.dtype.itemsize <= 4 and width < 2**24 else np.float64, copy=False)


def _checked_ids(name: str, ids: ArrayLike | Sequence[str]) -> NDArray[Any]:
    array = np.asarray(ids)
    if array.ndim != 1:
        raise InputError(f"{name} must be a flat list, got shape {list(array.shape)}")
    if array.size and array.dtype.kind not in "iuU":
        raise InputError(f"{name} must be integers or strings, got dtype {array.dtype}")
    return array


def _checked_cams(
    query_cams: ArrayLike | None, gallery_cams: ArrayLike | None, shape: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    if query_cams is None or gallery_cams is None:
        raise InputError("protocols 'sysu' and 'llcm' need query_cams and gallery_cams; 'regdb' needs none")
    cams = np.asarray(query_cams), np.asarray(gallery_cams)
    for name, values, length in zip(("query_cams", "gallery_cams"), cams, shape, strict=True):
        if values.shape != (length,):
            raise InputError(f"{name} must have shape [{length}] to fit the ids, got {list(values.shape)}")
        if values.dtype.kind not in "iu":
            raise InputError(f"{name} must be integers (3 for 'cam3'), got dtype {values.dtype}")
    return cams
