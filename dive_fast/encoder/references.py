"""The photos that an encoder sees: never the one that is drawn, and from another camera where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from dive_fast.types import Sample


def people_of(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Returns the rows of the RGB photos of each identity, sorted by pid."""
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        if sample.modality == "rgb":
            rows.setdefault(sample.pid, []).append(row)
    return dict(sorted(rows.items()))


@dataclass(frozen=True)
class References:
    """RGB photos with their features float16 [N, F]; a step sees 1 to `most` of them for each photo that it draws."""

    samples: tuple[Sample, ...]
    features: Tensor
    most: int
    seed: int

    @cached_property
    def people(self) -> dict[str, list[int]]:
        return people_of(self.samples)

    def draw(self, targets: Sequence[Sample], step: int) -> tuple[Tensor, Tensor]:
        """Returns the photos to see for each target: rows int64 [B, P] and which of them count, bool [B, P].

        All are of the target's identity. A pure function of (seed, step) and the targets.
        """
        rng = np.random.default_rng([self.seed, step, 2])
        picked = [self._pick(target, rng) for target in targets]
        rows = torch.zeros(len(picked), self.most, dtype=torch.int64)
        given = torch.zeros(len(picked), self.most, dtype=torch.bool)
        for place, chosen in enumerate(picked):
            rows[place, : len(chosen)] = torch.from_numpy(chosen)
            given[place, : len(chosen)] = True
        return rows, given

    def _pick(self, target: Sample, rng: np.random.Generator) -> np.ndarray:
        others = [row for row in self.people[target.pid] if self.samples[row].path != target.path]
        elsewhere = [row for row in others if self.samples[row].camera != target.camera]
        among = np.array(elsewhere or others, dtype=np.int64)
        return rng.choice(among, int(rng.integers(1, min(self.most, len(among)) + 1)), replace=False)
