"""The scores as plain functions of arrays (unit rows in, a number a row out), and their quantiles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)
_BLOCK = 1 << 24  # similarities at once: 64 MiB


def unit(rows: NDArray[np.floating]) -> F32:
    """Rows at length 1; a row of zeros stays one."""
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.maximum(length, 1e-12)).astype(np.float32)


def centroids(features: F32, labels: I64, classes: int) -> F32:
    """The mean direction of every class, at length 1, [classes, D]; each class needs a row."""
    return unit(_sums(features, labels, classes))


def _sums(features: F32, labels: I64, classes: int) -> NDArray[np.float64]:
    sums = np.zeros((classes, features.shape[1]))
    np.add.at(sums, labels, features)
    return sums


def margins(features: F32, labels: I64, centres: F32) -> F32:
    """Cosine similarity to the own class's centroid minus that to the nearest other one's, in -2..2.

    Above 0 the nearest centroid is the own one. Needs two classes.
    """
    similar = features @ centres.T
    rows = np.arange(len(features))
    own = similar[rows, labels].copy()
    similar[rows, labels] = -np.inf
    return own - similar.max(axis=1)


def left_out_margins(features: F32, labels: I64, classes: int) -> F32:
    """`margins` of the centroids' own images, each left out of its centroid; lone images are skipped."""
    counts = np.bincount(labels, minlength=classes)
    rows = counts[labels] > 1
    sums = _sums(features, labels, classes)
    own = unit(sums[labels[rows]] - features[rows])
    similar = features[rows] @ unit(sums).T
    similar[np.arange(len(similar)), labels[rows]] = -np.inf
    return (features[rows] * own).sum(axis=1) - similar.max(axis=1)


def nearest(features: F32, bank: F32 | None = None) -> tuple[F32, I64]:
    """The highest cosine similarity of each row to a row of `bank` [N, D], and that row's index.

    Without `bank` it is that to another row of `features`, which needs two rows.
    """
    known = features if bank is None else bank
    best, at = np.empty(len(features), np.float32), np.empty(len(features), np.int64)
    step = max(1, _BLOCK // len(known))
    for start in range(0, len(features), step):
        similar = features[start : start + step] @ known.T
        if bank is None:
            rows = np.arange(len(similar))
            similar[rows, start + rows] = -np.inf
        at[start : start + step] = similar.argmax(axis=1)
        best[start : start + step] = similar.max(axis=1)
    return best, at


def nearest_within(features: F32, labels: I64) -> F32:
    """The highest similarity of each row to another one of its label, by label; lone rows are left out."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    found = [nearest(features[group])[0] for group in groups if len(group) > 1]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def quantiles(values: NDArray[np.float32]) -> dict[str, float]:
    """{"1%": ..., "50%": ...} and the mean."""
    found = {f"{100 * q:g}%": round(float(np.quantile(values, q)), 4) for q in QUANTILES}
    return {**found, "mean": round(float(values.mean(dtype=np.float64)), 4)}


class RunningQuantiles:
    """Counts values in bins of 1/1000 between -2 and 2, where all scores lie; quantiles are exact to a bin's width."""

    BINS, LOW, HIGH = 4000, -2.0, 2.0

    def __init__(self) -> None:
        self._counts = np.zeros(self.BINS, np.int64)
        self._sum = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts `values`; NaN are left out."""
        known = values[~np.isnan(values)].astype(np.float64)
        place = ((known - self.LOW) / (self.HIGH - self.LOW) * self.BINS).astype(np.int64).clip(0, self.BINS - 1)
        self._counts += np.bincount(place, minlength=self.BINS)
        self._sum += float(known.sum())

    def quantiles(self) -> dict[str, float]:
        """As `quantiles`, and the number of "images"."""
        total = np.cumsum(self._counts)
        middle = self.LOW + (np.arange(self.BINS) + 0.5) * (self.HIGH - self.LOW) / self.BINS
        found = {f"{100 * q:g}%": round(float(middle[np.searchsorted(total, q * total[-1])]), 4) for q in QUANTILES}
        return {**found, "mean": round(self._sum / int(total[-1]), 4), "images": int(total[-1])}
