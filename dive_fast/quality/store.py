"""Features and scores of each shard's images, kept beside the scores for reruns."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import atomic_path
from dive_fast.quality.measures import unit
from dive_fast.quality.reid_extractor import F32


@dataclass(frozen=True)
class Stored:
    """Rows in the order of `DatasetShard.made`: features [n, D], scores [n, k], and each one's nearest training image."""

    features: F32
    values: F32
    nearest: NDArray[np.int64]


class FeatureStore:
    """scores/features/NNNNN.npz, features in half precision: 2 D bytes an image, 576 with the pocket ReID model.

    Each file holds the `key` of its inputs; a file of another key, or a damaged one, counts as missing.
    """

    def __init__(self, dataset: Path) -> None:
        self.folder = dataset / "scores" / "features"

    def path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npz"

    def write(self, number: int, key: str, stored: Stored) -> None:
        with atomic_path(self.path(number)) as temporary, open(temporary, "wb") as stream:
            np.savez(
                stream,
                key=np.frombuffer(key.encode(), np.uint8),
                features=stored.features.astype(np.float16),
                values=stored.values,
                nearest=stored.nearest,
            )

    def has(self, number: int, key: str) -> bool:
        """Whether the shard's file can be opened and has this `key`."""
        return self._arrays(number, key) is not None

    def read(self, number: int, key: str, rows: int) -> Stored | None:
        """The shard's rows; None when they are missing, damaged, of another number or of another key."""
        arrays = self._arrays(number, key, "features", "values", "nearest")
        if arrays is None or arrays[0].ndim != 2 or any(len(array) != rows for array in arrays):
            return None
        return Stored(unit(arrays[0]), *arrays[1:])

    def _arrays(self, number: int, key: str, *names: str) -> list[NDArray[Any]] | None:
        if not self.path(number).is_file():
            return None
        try:
            with np.load(self.path(number), allow_pickle=False) as held:
                return [held[name] for name in names] if bytes(held["key"]) == key.encode() else None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
