"""Quantiles of scores: of an array, and of any number of values in little memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.01, 0.05, 0.5, 0.95, 0.99)


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
