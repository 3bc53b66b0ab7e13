"""Distances between two sets of features, in float64: FID and KID."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
BLOCK = 1000  # images of a block of KID at most, as Binkowski et al. take
BLOCKS = 10  # at least, where there are images enough


@dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] (over n - 1) of `count` rows."""

    count: int
    mean: F64
    covariance: F64


def moments(features: NDArray[np.floating]) -> Moments:
    """The moments of [n, D] rows; needs two."""
    rows = features.astype(np.float64)
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Moments(len(rows), mean, centred.T @ centred / (len(rows) - 1))


def frechet(a: Moments, b: Moments) -> float:
    """Frechet distance of two Gaussians (FID: Heusel et al., NeurIPS 2017): |ma - mb|^2 + tr(A + B - 2 (A B)^(1/2)).

    With A = F F' and B = G G', the root's trace is the sum of the singular values of F' G. This stays exact for covariances
    without full rank, as few images have.
    """
    trace = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace)


def _factor(covariance: F64) -> F64:
    """F [D, rank] with F F' the covariance; directions whose variance is rounding are left out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


@dataclass(frozen=True)
class Kid:
    """KID and its standard error (None of a single block), over `blocks` blocks."""

    value: float
    error: float | None
    blocks: int


def polynomial_mmd(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Unbiased squared maximum mean discrepancy of [m, D] and [n, D] by the kernel (x.y / D + 1)^3
    (KID: Binkowski et al., ICLR 2018). Its expectation is 0 for sets from one source. Needs two rows each.
    """
    left, right = x.astype(np.float64), y.astype(np.float64)

    def kernel(a: F64, b: F64) -> F64:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: F64) -> float:
        values = kernel(a, a)
        return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))

    return within(left) + within(right) - 2 * float(kernel(left, right).mean())


def kid(x: NDArray[np.floating], y: NDArray[np.floating], seed: int = 0) -> Kid:
    """The mean of `polynomial_mmd` over disjoint random blocks of both sets, and that mean's standard error.

    Uses all rows: at least `BLOCKS` blocks where each set has two rows for each, and at most `BLOCK` rows in each.
    """
    fewest, most = sorted((len(x), len(y)))
    blocks = max(1, min(max(BLOCKS, -(-most // BLOCK)), fewest // 2))
    random = np.random.default_rng(seed)
    parts = [np.array_split(random.permutation(len(rows)), blocks) for rows in (x, y)]
    values = np.array([polynomial_mmd(x[a], y[b]) for a, b in zip(*parts, strict=True)])
    error = float(values.std(ddof=1) / np.sqrt(blocks)) if blocks > 1 else None
    return Kid(float(values.mean()), error, blocks)
