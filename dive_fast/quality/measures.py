"""The scores as plain functions of arrays: unit rows in, a number a row out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
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
    """`margins` of the images that the centroids are made of, each left out of its own; lone images are left out."""
    counts = np.bincount(labels, minlength=classes)
    rows = counts[labels] > 1
    sums = _sums(features, labels, classes)
    own = unit(sums[labels[rows]] - features[rows])
    similar = features[rows] @ unit(sums).T
    similar[np.arange(len(similar)), labels[rows]] = -np.inf
    return (features[rows] * own).sum(axis=1) - similar.max(axis=1)


def nearest(features: F32, bank: F32) -> tuple[F32, I64]:
    """The highest cosine similarity of each row to a row of `bank` [N, D], and which row that is."""
    best, at = np.empty(len(features), np.float32), np.empty(len(features), np.int64)
    step = max(1, _BLOCK // len(bank))
    for start in range(0, len(features), step):
        similar = features[start : start + step] @ bank.T
        at[start : start + step] = similar.argmax(axis=1)
        best[start : start + step] = similar.max(axis=1)
    return best, at


def nearest_other(features: F32) -> F32:
    """The highest cosine similarity of each row to another row; needs two rows."""
    best = np.empty(len(features), np.float32)
    step = max(1, _BLOCK // len(features))
    for start in range(0, len(features), step):
        similar = features[start : start + step] @ features.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf
        best[start : start + step] = similar.max(axis=1)
    return best


def nearest_within(features: F32, labels: I64) -> F32:
    """`nearest_other` within each label, of all rows whose label has another row."""
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
    found = [nearest_other(features[group]) for group in groups if len(group) > 1]
    return np.concatenate(found) if found else np.empty(0, np.float32)
