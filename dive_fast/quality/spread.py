"""Quantiles of any number of values in a little memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Spread:
    """Counts in bins of 1/1000 between -2 and 2, where all scores lie; quantiles are true to a bin's width."""

    BINS, LOW, HIGH = 4000, -2.0, 2.0

    def __init__(self) -> None:
        self._counts = np.zeros(self.BINS, np.int64)
        self._sum = 0.0

    @property
    def count(self) -> int:
        return int(self._counts.sum())

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts `values`, NaN left out."""
        known = values[~np.isnan(values)].astype(np.float64)
        place = ((known - self.LOW) / (self.HIGH - self.LOW) * self.BINS).astype(np.int64).clip(0, self.BINS - 1)
        self._counts += np.bincount(place, minlength=self.BINS)
        self._sum += float(known.sum())

    def quantiles(self, shares: tuple[float, ...]) -> dict[str, Any]:
        """{"1%": ..., "50%": ..., "mean": ..., "images": ...}."""
        total = np.cumsum(self._counts)
        middle = self.LOW + (np.arange(self.BINS) + 0.5) * (self.HIGH - self.LOW) / self.BINS
        found = {f"{100 * q:g}%": round(float(middle[np.searchsorted(total, q * total[-1])]), 4) for q in shares}
        return {**found, "mean": round(self._sum / int(total[-1]), 4), "images": int(total[-1])}
