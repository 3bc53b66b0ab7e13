"""Re-ranking by k-reciprocal neighbours (Zhong et al., CVPR 2017, arXiv:1701.08398) with sparse weights.

Published figures rest on the authors' code, which this module follows where it differs from the paper: an image is its
own first neighbour, so there are k + 1; a neighbour's half list joins when it shares MORE than two thirds (equation 3 has
"at least"); and the weights exp(-d) of an image sum to 1 (not in equation 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.environment.optional import optional
from dive_fast.settings import Fraction, PositiveInt, Settings
from dive_fast.types import InputError

_CHUNK_CELLS = 4_000_000  # distances that are held at a time
Index = NDArray[np.intp]


@dataclass(frozen=True)
class RerankConfig(Settings):
    """Settings of re-ranking; the paper's values."""

    k1: PositiveInt = 20
    """Neighbours that must be mutual."""
    k2: PositiveInt = 6
    """Neighbours whose weights are averaged."""
    share: Fraction = 0.3
    """Fraction of the original distance in the final one (lambda)."""


class Reranked:
    """Final distances of `query` [Q, D] to `gallery` [G, D], computed per slice of queries; smaller is nearer.

    Memory grows with the images, not with their square: a copy of the features, and 12 bytes for each weight, of which
    images had about 40 (clouds of 100 and 400 identities). Raises `InputError` for features that are not finite, and
    `DiveError` without scipy.
    """

    def __init__(self, query: NDArray[Any], gallery: NDArray[Any], config: RerankConfig):
        self._features = _joined(query, gallery)
        self._queries, self._config = len(query), config
        self._norms = np.einsum("nd,nd->n", self._features, self._features)
        near, self._scale = self._neighbours(config.k1 + 1)
        weights = _averaged(self._encoded(near), near[:, : config.k2])
        self._probes = weights[: self._queries].tocsr()
        self._gallery = weights[self._queries :].tocsc()

    def rows(self, part: slice) -> NDArray[np.float32]:
        """Distances float32 [q, G] of the queries `part`: (1 - share) x Jaccard distance + share x original distance."""
        queries, share = np.arange(*part.indices(self._queries)), self._config.share
        original = self._distances(queries, self._queries) / self._scale[queries, None]
        out = np.empty(original.shape, np.float32)
        for row, query in enumerate(queries.tolist()):
            shared = self._shared(query)
            jaccard = 1 - shared / (2 - shared)  # weights sum to 1, so the larger ones of all pairs sum to 2 - shared
            out[row] = (1 - share) * jaccard + share * original[row]
        return out

    def _shared(self, query: int) -> NDArray[np.float64]:
        """Sum over all images of the smaller weight of the query and each gallery image, [G]."""
        own = slice(*self._probes.indptr[query : query + 2])
        columns, bounds = self._probes.indices[own], self._gallery.indptr
        sizes = bounds[columns + 1] - bounds[columns]
        entry = np.arange(sizes.sum()) + np.repeat(bounds[columns] - (np.cumsum(sizes) - sizes), sizes)
        smaller = np.minimum(np.repeat(self._probes.data[own], sizes), self._gallery.data[entry])
        total = np.bincount(self._gallery.indices[entry], smaller, self._gallery.shape[0])
        return total.astype(np.float64, copy=False)  # integers where there is nothing to sum

    def _distances(self, rows: Index, first: int = 0) -> NDArray[Any]:
        """Squared Euclidean distances of some images to those from `first` on, [rows, N - first]."""
        products = self._features[rows] @ self._features[first:].T
        distances: NDArray[Any] = np.maximum(self._norms[rows][:, None] + self._norms[first:] - 2 * products, 0)
        return distances

    def _neighbours(self, count: int) -> tuple[Index, NDArray[np.float64]]:
        """The nearest images of each, itself included [N, count], ties in order; the largest distance of each [N]."""
        total = len(self._features)
        near, largest = np.empty((total, min(count, total)), np.intp), np.empty(total)
        chunk = max(1, _CHUNK_CELLS // total)
        for start in range(0, total, chunk):
            rows = np.arange(start, min(start + chunk, total))
            distances = self._distances(rows)
            distances[np.arange(len(rows)), rows] = 0  # rounding must not move an image from its own first place
            near[rows], largest[rows] = _smallest(distances, near.shape[1]), distances.max(axis=1)
        return near, np.where(largest > 0, largest, 1.0)

    def _encoded(self, near: Index) -> Any:
        """exp(-distance) of each image's expanded k-reciprocal neighbours (R* of the paper), CSR [N, N]; rows sum to 1."""
        mutual, half = _mutual(near), _mutual(near[:, : round(self._config.k1 / 2) + 1])
        columns = []
        for members in mutual:
            known, joining = set(members.tolist()), [members]
            for candidate in members.tolist():
                if 3 * sum(j in known for j in half[candidate].tolist()) > 2 * len(half[candidate]):
                    joining.append(half[candidate])
            columns.append(np.unique(np.concatenate(joining)))
        starts, flat = np.cumsum([0, *map(len, columns)]), np.concatenate(columns)
        row = np.repeat(np.arange(len(near)), np.diff(starts))
        weights = np.exp(-self._pair_distances(row, flat) / self._scale[row])
        return _csr(weights / np.bincount(row, weights)[row], flat, starts)

    def _pair_distances(self, rows: Index, columns: Index) -> NDArray[np.float64]:
        """Squared Euclidean distances of pairs of images, a chunk of pairs at a time."""
        out = np.empty(len(rows))
        chunk = max(1, _CHUNK_CELLS // self._features.shape[1])
        for start in range(0, len(rows), chunk):
            part = slice(start, start + chunk)
            difference = self._features[rows[part]] - self._features[columns[part]]
            out[part] = np.einsum("nd,nd->n", difference, difference)
        return out


def _joined(query: NDArray[Any], gallery: NDArray[Any]) -> NDArray[Any]:
    """Both sides' features one after the other, as float64 if they are, else float32."""
    for name, side in (("query", query), ("gallery", gallery)):
        if not np.isfinite(side).all():
            raise InputError(f"the {name} features hold NaN or infinity; extract them again")
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


def _averaged(weights: Any, near: Index) -> Any:
    """Local query expansion: the mean of the weights of each image's `near` images."""
    total, width = near.shape
    return _csr(np.full(near.size, 1 / width), near.ravel(), np.arange(0, near.size + 1, width)) @ weights


def _csr(data: NDArray[Any], columns: Index, starts: Index) -> Any:
    """A sparse matrix [N, N] from its rows' values and columns."""
    size = len(starts) - 1
    return optional("scipy.sparse", "re-ranking").csr_matrix((data, columns, starts), (size, size))
