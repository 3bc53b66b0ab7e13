"""Where the rows of real people lie: from there virtual people are drawn, and kept away from each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dive_fast.models.files import read_tensors, write_tensors
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.train.embedding import PhraseRows

KEPT = 0.999  # fraction of the variance that the principal components hold
_NAMES = ("mean", "components", "deviations", "coordinates")
_HALVES = ("components", "coordinates")  # orthonormal, and in deviations: float16 is enough for both
_BLOCK = 1024  # rows of a matrix of distances


@dataclass(frozen=True)
class Distribution:
    """The rows of N people, all words of one behind each other (L = words * D), in their principal components.

    `mean` [L], `components` [C, L] (orthonormal) and `deviations` [C], largest first, describe a Gaussian; `coordinates`
    [N, C] place the people in it, in deviations.
    """

    mean: Tensor
    components: Tensor
    deviations: Tensor
    coordinates: Tensor

    @classmethod
    def fit(cls, tokens: Tensor) -> Distribution:
        """Fits the Gaussian to the rows [N, L] of at least two people."""
        values = tokens.double()
        mean = values.mean(dim=0)
        places, lengths, components = torch.linalg.svd(values - mean, full_matrices=False)
        shares = lengths.square().cumsum(0) - lengths.square()
        kept = max(1, int((shares < KEPT * lengths.square().sum()).sum()))
        deviations, coordinates = lengths[:kept] / (len(tokens) - 1) ** 0.5, places[:, :kept] * (len(tokens) - 1) ** 0.5
        return cls(mean.float(), components[:kept].half().float(), deviations.float(), coordinates.half().float())

    def save(self, path: Path) -> None:
        tensors = {name: getattr(self, name) for name in _NAMES}
        write_tensors(path, {name: each.half() if name in _HALVES else each for name, each in tensors.items()})

    @classmethod
    def load(cls, path: Path, phrase: PhraseRows) -> Distribution:
        """Reads what `save` wrote; another file, or one that does not fit the phrase, raises `InputError`."""
        tensors = read_tensors(path)
        if set(tensors) != set(_NAMES):
            raise InputError(f"{path} must hold {', '.join(_NAMES)}; copy the folder again")
        length, count = len(phrase.order) * phrase.start.shape[1], tensors["deviations"].numel()
        people = tensors["coordinates"].numel() // max(1, count)
        shapes = {
            "mean": [length],
            "components": [count, length],
            "deviations": [count],
            "coordinates": [people, count],
        }
        wrong = [name for name, shape in shapes.items() if list(tensors[name].shape) != shape]
        if wrong or people < 2:
            raise InputError(f"{path}: {wrong[0] if wrong else 'coordinates'} has another shape; copy the folder again")
        return cls(**tensors)

    @cached_property
    def tokens(self) -> Tensor:
        """The people's rows float32 [N, L], but for the variance that the components leave out."""
        return self._at(self.coordinates)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws rows float32 [count, L] from the Gaussian."""
        return self._at(torch.randn(count, len(self.deviations), generator=generator))

    def recombine(self, lengths: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
        """Draws rows float32 [count, L] whose parts, of these lengths, are each those of a person drawn for that part."""
        parts = self.tokens.split(list(lengths), dim=1)
        chosen = torch.randint(len(self.tokens), (len(parts), count), generator=generator)
        return torch.cat([part[people] for part, people in zip(parts, chosen, strict=True)], dim=1)

    def _at(self, coordinates: Tensor) -> Tensor:
        return self.mean + (coordinates * self.deviations) @ self.components

    def between(self) -> Tensor:
        """Returns the distance [N] of each person's rows to those of the nearest other person."""
        return nearest(self.tokens, self.tokens, others=True)

    @cached_property
    def apart(self) -> float:
        """The distance that 19 of 20 pairs of different people exceed."""
        return float(torch.quantile(torch.pdist(self.tokens[:_BLOCK].double()), 0.05))


def nearest(rows: Tensor, to: Tensor, others: bool = False) -> Tensor:
    """Returns the Euclidean distance [A] of each of `rows` [A, L] to the nearest of `to` [B, L]; infinite for no `to`.

    With `others`, both are the same rows, and none is its own nearest.
    """
    found = torch.full((len(rows),), torch.inf)
    for first in range(0, len(rows), _BLOCK) if len(to) else ():
        block = torch.cdist(rows[first : first + _BLOCK].double(), to.double())
        if others:
            block[torch.arange(len(block)), torch.arange(first, first + len(block))] = torch.inf
        found[first : first + len(block)] = block.amin(dim=1).float()
    return found
