"""Re-ranking by k-reciprocal neighbours (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding",
CVPR 2017, arXiv:1701.08398), sparse, so that its memory grows with the images and not with their square.

As the authors' released code does it, on which published figures rest; that differs from the paper's formulas in three
points: an image is its own first neighbour, so that there are k + 1; a neighbour's half list joins when it shares MORE
than two thirds (equation 3 has "at least"); and the weights exp(-d) of an image sum to 1 (not so in equation 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dive_fast.types import InputError

_CHUNK_CELLS = 4_000_000  # distances in work at a time
_CHUNK_PAIRS = 1_000_000  # pairs of weights in work at a time
Index = NDArray[np.intp]


@dataclass(frozen=True)
class RerankConfig:
    """`k1` neighbours that must be mutual, `k2` neighbours whose weights are averaged, `share` of the original distance
    (lambda) in the final one; the paper's values."""

    k1: int = 20
    k2: int = 6
    share: float = 0.3

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.share <= 1:
            raise InputError(f"re-ranking needs k1 and k2 of at least 1 and a share within 0..1, got {self.k1}, {self.k2} "
                             f"and {self.share}")  # fmt: skip


@dataclass(frozen=True)
class _Sparse:
    """Rows of weights: row i has `weights[starts[i]:starts[i + 1]]` at `columns` (ascending)."""

    starts: Index
    columns: Index
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def entries(self, rows: Index) -> tuple[Index, Index]:
        """For every entry of `rows`, row after row: the place in `rows`, and the place in `columns`."""
        return _ranges(self.starts[rows], self.starts[rows + 1])


class Reranked:
    """Final distances of `query` [Q, D] to `gallery` [G, D], made row by row when asked for; smaller is nearer.

    It holds a copy of the features and 16 bytes for each weight, of which images had about 40 (made-up clouds of 100 and
    400 people); in work are at most `_CHUNK_CELLS` distances or `_CHUNK_PAIRS` pairs of weights. 4,000 x 10,000 images with
    512 values took 130 MB at most, where one full matrix would be 784 MB. Raises `InputError` for features that do not fit
    or are not finite.
    """

    def __init__(
        self,
        query: NDArray[Any],
        gallery: NDArray[Any],
        config: RerankConfig = RerankConfig(),
        progress: str | None = None,
    ):
        self._features = _joined(query, gallery)
        self._queries, self._config = len(query), config
        self._norms = np.einsum("nd,nd->n", self._features, self._features)
        near, self._scale = self._neighbours(config.k1 + 1, progress)
        weights = self._averaged(self._encoded(near), near[:, : config.k2])
        self._probes = weights
        self._inverse = _transposed(weights, self._queries, len(self._features))

    def rows(self, part: slice) -> NDArray[np.float32]:
        """Distances float32 [q, G] of the queries `part`: (1 - share) x Jaccard distance + share x original distance."""
        chosen = np.arange(*part.indices(self._queries))
        width = len(self._features) - self._queries
        out = np.empty((len(chosen), width), np.float32)
        for rows in self._affordable(chosen):
            shared = self._shared(chosen[rows], width)
            original = self._distances(chosen[rows])[:, self._queries :] / self._scale[chosen[rows]][:, None]
            jaccard = 1 - shared / (
                2 - shared
            )  # the larger ones of each pair sum up to 2 - shared, as all weights to 1
            out[rows] = (1 - self._config.share) * jaccard + self._config.share * original
        return out

    def _distances(self, rows: Index) -> NDArray[Any]:
        """Squared Euclidean distances of some images to all, [rows, N]; exactly 0 to themselves."""
        products = self._features[rows] @ self._features.T
        distances = np.maximum(self._norms[rows][:, None] + self._norms - 2 * products, 0)
        distances[np.arange(len(rows)), rows] = 0
        return distances

    def _neighbours(self, count: int, progress: str | None) -> tuple[Index, NDArray[np.float64]]:
        """The nearest images of each, itself included [N, count], equal distances in order; its largest distance [N]."""
        total = len(self._features)
        near, largest = np.empty((total, min(count, total)), np.intp), np.empty(total)
        chunk = max(1, _CHUNK_CELLS // total)
        bar = tqdm(total=total, desc=progress, unit="image", disable=progress is None, leave=False)
        for start in range(0, total, chunk):
            rows = np.arange(start, min(start + chunk, total))
            distances = self._distances(rows)
            near[rows], largest[rows] = _smallest(distances, near.shape[1]), distances.max(axis=1)
            bar.update(len(rows))
        bar.close()
        return near, np.where(largest > 0, largest, 1.0)

    def _encoded(self, near: Index) -> _Sparse:
        """exp(-distance) of each image's expanded k-reciprocal neighbours (R* of the paper), which sum up to 1."""
        mutual, half = _mutual(near), _mutual(near[:, : round(self._config.k1 / 2) + 1])
        columns = []
        for members in mutual:
            known, joining = set(members.tolist()), [members]
            for candidate in members.tolist():
                list_of = half[candidate]
                if 3 * sum(j in known for j in list_of.tolist()) > 2 * len(list_of):
                    joining.append(list_of)
            columns.append(np.unique(np.concatenate(joining)))
        starts = np.cumsum([0, *map(len, columns)])
        flat = np.concatenate(columns)
        row = np.repeat(np.arange(len(near)), np.diff(starts))
        weights = np.exp(-self._pair_distances(row, flat) / self._scale[row])
        return _Sparse(starts, flat, weights / np.bincount(row, weights)[row])

    def _pair_distances(self, rows: Index, columns: Index) -> NDArray[np.float64]:
        """Squared Euclidean distances of pairs of images, a chunk of pairs at a time."""
        out = np.empty(len(rows))
        chunk = max(1, _CHUNK_CELLS // self._features.shape[1])
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            difference = self._features[rows[part]] - self._features[columns[part]]
            out[part] = np.einsum("nd,nd->n", difference, difference)
        return out

    def _averaged(self, weights: _Sparse, near: Index) -> _Sparse:
        """Local query expansion: the mean of the weights of each image's `near` images."""
        if near.shape[1] == 1:
            return weights
        total, width = near.shape
        parts, chunk = [], max(1, _CHUNK_PAIRS // (width * int(np.diff(weights.starts).max())))
        for start in range(0, total, chunk):
            members = near[start : start + chunk]
            place, entry = weights.entries(members.ravel())
            key = (place // width + start) * total + weights.columns[entry]
            keys, where = np.unique(key, return_inverse=True)
            parts.append((keys, np.bincount(where, weights.weights[entry]) / width))
        keys = np.concatenate([keys for keys, _ in parts])
        starts = np.searchsorted(keys, np.arange(total + 1) * total)
        return _Sparse(starts, keys % total, np.concatenate([values for _, values in parts]))

    def _affordable(self, queries: Index) -> list[slice]:
        """Slices of `queries` few enough that their distances and their pairs of weights fit the limits."""
        place, entry = self._probes.entries(queries)
        lengths = np.diff(self._inverse.starts)[self._probes.columns[entry]]
        cost = np.bincount(place, lengths, len(queries)) / _CHUNK_PAIRS + len(self._features) / _CHUNK_CELLS
        bounds = np.flatnonzero(np.diff(np.floor(np.cumsum(cost)), prepend=0) > 0)
        edges = np.unique([0, *bounds, len(queries)])
        return [slice(a, b) for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]

    def _shared(self, queries: Index, width: int) -> NDArray[np.float64]:
        """Sum over all images of the smaller weight of query and gallery image, [queries, G]."""
        place, entry = self._probes.entries(queries)
        pair, other = self._inverse.entries(self._probes.columns[entry])
        smaller = np.minimum(self._probes.weights[entry][pair], self._inverse.weights[other])
        cell = place[pair] * width + self._inverse.columns[other]
        total = np.bincount(cell, smaller, len(queries) * width).astype(np.float64, copy=False)
        return total.reshape(len(queries), width)


def rerank(
    query: NDArray[Any],
    gallery: NDArray[Any],
    config: RerankConfig = RerankConfig(),
) -> NDArray[np.float32]:
    """All of `Reranked` at once: float32 [Q, G]."""
    return Reranked(query, gallery, config).rows(slice(None))


def _joined(query: NDArray[Any], gallery: NDArray[Any]) -> NDArray[Any]:
    """Both sides' features one after the other, as float64 if they are, else float32."""
    for name, side in (("query", query), ("gallery", gallery)):
        if side.ndim != 2 or not side.size or side.dtype.kind not in "fiu":
            raise InputError(f"re-ranking needs {name} features [images, size], got shape {list(side.shape)}")
        if not np.isfinite(side).all():
            raise InputError(f"the {name} features hold NaN or infinity; extract them again")
    if query.shape[1] != gallery.shape[1]:
        raise InputError(
            f"query features have {query.shape[1]} values and gallery features {gallery.shape[1]}; take one model"
        )
    both = np.concatenate([query, gallery])
    return both if both.dtype == np.float64 else both.astype(np.float32)


def _smallest(distances: NDArray[Any], count: int) -> Index:
    """Columns of the `count` smallest of each row, ascending, equal ones in column order, [rows, count]."""
    if count == distances.shape[1]:
        return np.argsort(distances, axis=1, kind="stable")
    chosen = np.sort(np.argpartition(distances, count - 1, axis=1)[:, :count], axis=1)
    values = np.take_along_axis(distances, chosen, axis=1)
    limit = values.max(axis=1)
    chosen = np.take_along_axis(chosen, np.argsort(values, axis=1, kind="stable"), axis=1)
    for row in np.flatnonzero(np.count_nonzero(distances <= limit[:, None], axis=1) > count):  # equals at the limit
        chosen[row] = np.argsort(distances[row], kind="stable")[:count]
    return chosen


def _mutual(near: Index) -> list[Index]:
    """Per image, those of its neighbours that have it among theirs (R of the paper), in order of distance."""
    total = len(near)
    row = np.repeat(np.arange(total), near.shape[1])
    flat = near.ravel()
    mutual = np.isin(row * total + flat, flat * total + row)
    return np.split(flat[mutual], np.cumsum(np.bincount(row[mutual], minlength=total))[:-1])


def _transposed(weights: _Sparse, first: int, total: int) -> _Sparse:
    """The rows from `first` on, by column: which of them (counted from 0) weigh it, and how much."""
    begin = weights.starts[first]
    row = np.repeat(np.arange(len(weights)), np.diff(weights.starts))[begin:] - first
    column, values = weights.columns[begin:], weights.weights[begin:]
    order = np.argsort(column, kind="stable")
    return _Sparse(np.searchsorted(column[order], np.arange(total + 1)), row[order], values[order])


def _ranges(starts: Index, ends: Index) -> tuple[Index, Index]:
    """The numbers of all ranges one after the other, after which range each belongs to."""
    sizes = ends - starts
    place = np.repeat(np.arange(len(sizes)), sizes)
    return place, np.arange(len(place)) + np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
