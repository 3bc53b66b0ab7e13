"""Rank metrics of cross-camera retrieval: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dive_fast.types import InputError

Rule = Literal["sysu", "llcm", "regdb"]
RULES: tuple[Rule, ...] = ("sysu", "llcm", "regdb")
_CHUNK_CELLS = 4_000_000  # ranks in work at a time: bounds memory at ~0.3 GB for any query count


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
    """CMC, mAP and mINP of a distance matrix under a data set's rule.

    `distances` [Q, G], smaller is nearer, equal distances rank in gallery order; ids [Q] and [G] integers or strings;
    cameras [Q] and [G] integers (not needed by "regdb").
    - "sysu": a camera-3 query ignores camera-2 gallery items (same place); in the CMC each gallery identity counts once.
    - "llcm": gallery items of the query's identity AND camera are ignored; in the CMC each gallery identity counts once.
    - "regdb": nothing is ignored, plain CMC.

    A query whose identity is absent from what remains of the gallery is invalid and adds nothing.
    Raises `InputError` for NaN distances, shapes that do not fit, missing cameras, and when no query is valid.
    """
    distances, query_ids, gallery_ids = _checked(distances, query_ids, gallery_ids, protocol, max_rank)
    cams = _checked_cams(query_cams, gallery_cams, distances.shape) if protocol != "regdb" else None
    identities, codes = np.unique(np.concatenate([query_ids, gallery_ids]), return_inverse=True)
    query, gallery = codes[: len(query_ids)], codes[len(query_ids) :]

    firsts, precisions, inverse_penalties = [], [], []
    rows = max(1, _CHUNK_CELLS // distances.shape[1])
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        ignored = _ignored(protocol, query[part], gallery, None if cams is None else (cams[0][part], cams[1]))
        first, ap, inp = _rank(distances[part], query[part], gallery, ignored, once_per_identity=protocol != "regdb")
        firsts.append(first)
        precisions.append(ap)
        inverse_penalties.append(inp)
    first = np.concatenate(firsts)
    if not len(first):
        raise InputError(
            f"no valid query: none of the {len(query)} queries has its identity in its gallery (rule {protocol!r}); "
            "check that query and gallery are of the same people and camera ids are right"
        )
    cmc = (first[:, None] < np.arange(1, max_rank + 1)).mean(axis=0)
    return RankMetrics(
        cmc, float(np.concatenate(precisions).mean()), float(np.concatenate(inverse_penalties).mean()), len(first)
    )


def _rank(
    distances: NDArray[Any],
    query: NDArray[Any],
    gallery: NDArray[Any],
    ignored: NDArray[np.bool_] | None,
    once_per_identity: bool,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Per valid query: the 0-based CMC rank of its first hit, average precision, inverse negative penalty."""
    order = np.argsort(distances, axis=1, kind="stable")
    kept = np.ones(order.shape, bool) if ignored is None else ~np.take_along_axis(ignored, order, axis=1)
    hit = (gallery[order] == query[:, None]) & kept
    valid = hit.any(axis=1)
    order, kept, hit, query = order[valid], kept[valid], hit[valid], query[valid]

    rank = kept.cumsum(axis=1)  # 1-based rank after removal
    hits = hit.cumsum(axis=1)
    positives = hits[:, -1]
    precision = np.where(hit, hits / np.maximum(rank, 1), 0.0).sum(axis=1) / positives
    last = order.shape[1] - 1 - hit[:, ::-1].argmax(axis=1)
    rows = np.arange(len(order))
    penalty = positives / rank[rows, last]
    if once_per_identity:
        first = _identities_before(order, kept, query, gallery)
    else:
        first = rank[rows, hit.argmax(axis=1)] - 1
    return first, precision, penalty


def _identities_before(
    order: NDArray[Any], kept: NDArray[np.bool_], query: NDArray[Any], gallery: NDArray[Any]
) -> NDArray[Any]:
    """How many other identities rank before each query's own, an identity ranking where its best kept item does."""
    places = np.empty(order.shape, np.int64)
    ranked = np.where(kept, np.arange(order.shape[1]), order.shape[1])  # ignored items rank behind everything
    np.put_along_axis(places, order, ranked, axis=1)
    by_identity = np.argsort(gallery, kind="stable")
    present, starts = np.unique(gallery[by_identity], return_index=True)
    best = np.minimum.reduceat(places[:, by_identity], starts, axis=1)  # [Q, identities]
    own = best[np.arange(len(query)), np.searchsorted(present, query)]
    return (best < own[:, None]).sum(axis=1)


def _ignored(
    protocol: Rule, query: NDArray[Any], gallery: NDArray[Any], cams: tuple[NDArray[Any], NDArray[Any]] | None
) -> NDArray[np.bool_] | None:
    """Gallery items that each query does not see [Q, G]; None when it sees them all."""
    if cams is None:
        return None
    query_cams, gallery_cams = cams
    if protocol == "sysu":
        return (query_cams[:, None] == 3) & (gallery_cams == 2)
    return (query[:, None] == gallery) & (query_cams[:, None] == gallery_cams)


def _checked(
    distances: ArrayLike, query_ids: ArrayLike, gallery_ids: ArrayLike, protocol: str, max_rank: int
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if protocol not in RULES:
        raise InputError(f"protocol must be one of {', '.join(RULES)}, got {protocol!r}")
    if max_rank < 1:
        raise InputError(f"max_rank must be at least 1, got {max_rank}")
    matrix, queries, gallery = np.asarray(distances), np.asarray(query_ids), np.asarray(gallery_ids)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"distances must be [queries, gallery] and not empty, got shape {list(matrix.shape)}")
    for name, ids, length in (("query_ids", queries, matrix.shape[0]), ("gallery_ids", gallery, matrix.shape[1])):
        if ids.shape != (length,):
            raise InputError(f"{name} must have shape [{length}] to fit the distances, got {list(ids.shape)}")
        if ids.dtype.kind not in "iuU":
            raise InputError(f"{name} must be integers or strings, got dtype {ids.dtype}")
    if (queries.dtype.kind == "U") != (gallery.dtype.kind == "U"):
        raise InputError(f"query_ids are {queries.dtype} but gallery_ids are {gallery.dtype}; give both the same type")
    if np.isnan(matrix).any():
        rows = int(np.isnan(matrix).any(axis=1).sum())
        raise InputError(f"distances hold NaN in {rows} of {len(matrix)} rows; the features behind them are broken")
    return matrix, queries, gallery


def _checked_cams(
    query_cams: ArrayLike | None, gallery_cams: ArrayLike | None, shape: tuple[int, ...]
) -> tuple[NDArray[Any], NDArray[Any]]:
    if query_cams is None or gallery_cams is None:
        raise InputError("protocols 'sysu' and 'llcm' need query_cams and gallery_cams; 'regdb' needs none")
    cams = np.asarray(query_cams), np.asarray(gallery_cams)
    for name, values, length in zip(("query_cams", "gallery_cams"), cams, shape, strict=True):
        if values.shape != (length,):
            raise InputError(f"{name} must have shape [{length}] to fit the distances, got {list(values.shape)}")
        if values.dtype.kind not in "iu":
            raise InputError(f"{name} must be integers (3 for 'cam3'), got dtype {values.dtype}")
    return cams
