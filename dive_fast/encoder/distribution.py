"""Where the rows of real people lie: from there virtual people are drawn, and kept away from each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.train.embedding import PhraseRows

_NAMES = ("tokens", "mean", "components", "variances")
_BLOCK = 1024  # rows of a matrix of distances


@dataclass(frozen=True)
class Distribution:
    """The rows of N people, `tokens` float32 [N, words * D], and their principal components.

    `mean` [words * D], `components` [C, words * D] (orthonormal) and `variances` [C], largest first, describe a Gaussian.
    """

    tokens: Tensor
    mean: Tensor
    components: Tensor
    variances: Tensor

    @classmethod
    def fit(cls, tokens: Tensor) -> Distribution:
        """Fits the Gaussian to at least two people."""
        values = tokens.double()
        mean = values.mean(dim=0)
        _, lengths, components = torch.linalg.svd(values - mean, full_matrices=False)
        kept = slice(0, min(len(tokens) - 1, len(components)))
        variances = lengths[kept].square() / (len(tokens) - 1)
        return cls(tokens.float(), mean.float(), components[kept].float(), variances.float())

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).contiguous() for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], phrase: PhraseRows, where: str) -> Distribution:
        """Builds it from a file's tensors; others, or ones that do not fit, raise `InputError`, which names `where`."""
        length = len(phrase.order) * phrase.start.shape[1]
        if set(tensors) != set(_NAMES):
            raise InputError(f"{where} must hold {', '.join(_NAMES)}; copy the folder again")
        count = len(tensors["variances"]) if tensors["variances"].ndim == 1 else -1
        shapes = {"mean": [length], "components": [count, length], "tokens": [len(tensors["tokens"]), length]}
        wrong = [name for name, shape in shapes.items() if list(tensors[name].shape) != shape]
        if wrong or len(tensors["tokens"]) < 2:
            raise InputError(f"{where}: {wrong[0] if wrong else 'tokens'} has another shape; copy the folder again")
        return cls(**tensors)

    def draw(self, count: int, generator: torch.Generator, variance: float) -> Tensor:
        """Draws rows float32 [count, words * D] from the Gaussian in the components that hold `variance` of all."""
        shares = (self.variances.cumsum(0) - self.variances) / self.variances.sum().clamp(min=1e-30)
        kept = int((shares < variance).sum())
        coordinates = torch.randn(count, kept, generator=generator) * self.variances[:kept].clamp(min=0).sqrt()
        return self.mean + coordinates @ self.components[:kept]

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
