"""The mapper: features of some photos of a person to the rows of the phrase that stands for the person."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dive_fast.train.tagger import INDEPENDENT

if TYPE_CHECKING:
    from dive_fast.train.embedding import PhraseRows


_FAR = 10.0  # deviations of a feature that count: a photo of another kind must not throw a person out of the vocabulary


class Mapper(nn.Module):
    """Pools photos by weights that they predict themselves, per channel, and predicts a phrase's free vectors and mixes.

    Each photo passes alone through two layers; a softmax over photos weighs its channels, so the one photo that shows the
    bag can decide on the bag, and the number of photos shifts nothing. The last layer starts at zero: everyone starts at the
    phrase's own words. Free vectors move in units of `unit`, the standard deviation of the vocabulary's entries; `norm` is
    its words' mean length. With `said`, the first features are a tagger's log probabilities of the phrase's mixed words:
    their mean over photos, times `trust`, is where mixes start.
    """

    mean: Tensor
    scale: Tensor
    unit: Tensor
    norm: Tensor

    def __init__(
        self, features: int, width: int, phrase: PhraseRows, table: Tensor | None = None, said: bool = False
    ) -> None:
        super().__init__()
        self.phrase = phrase
        self.photo = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width))
        self.weigh = nn.Linear(width, width)
        self.person = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.last = nn.Linear(width, phrase.start.numel() + phrase.absent.numel())
        self.trust = nn.Parameter(torch.full((1,), INDEPENDENT) if said else torch.zeros(0))
        for layer in (self.weigh, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.register_buffer("unit", torch.ones(()) if table is None else table.std())
        self.register_buffer("norm", torch.ones(()) if table is None else table.norm(dim=1).mean())

    def normalise_by(self, features: Tensor) -> None:
        """Takes mean and deviation of float16 `features` [N, F] for those of all photos.

        A feature that changes by no more than float16 rounds counts 0.
        """
        values = features.double()
        self.mean.copy_(values.mean(dim=0))
        deviation = values.std(dim=0, correction=0)
        least = 2**-10 * (self.mean.abs() + deviation.mean())
        self.scale.copy_(torch.where(deviation > least, 1 / deviation, 0))

    def forward(self, features: Tensor, given: Tensor, kept: Tensor | None = None) -> Tensor:
        """Returns rows float32 [B, words, D] of features [B, P, F], of which photos `given` bool [B, P] are there.

        `kept` float [B, 1, F] are factors of the normalised features.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = ((features.float() - self.mean) * self.scale).clamp(-_FAR, _FAR)
            hidden = self.photo(x if kept is None else x * kept)
            weights = self.weigh(hidden).masked_fill(~given[:, :, None], -torch.inf).softmax(dim=1)
            out = self.last(self.person((weights * hidden.masked_fill(~given[:, :, None], 0)).sum(dim=1)))
            free, mixes = out.split([self.phrase.start.numel(), self.phrase.absent.numel()], dim=1)
            moved = self.phrase.start + self.unit * free.unflatten(1, self.phrase.start.shape)
            logits = mixes.unflatten(1, self.phrase.absent.shape)
            return self.phrase.join(moved, logits + self._said(features, given) if len(self.trust) else logits)

    def _said(self, features: Tensor, given: Tensor) -> Tensor:
        """Returns what a tagger says of all photos together, logits [B, M, W]."""
        there = self.phrase.absent == 0
        words = features[:, :, : int(there.sum())].float().masked_fill(~given[:, :, None], 0)
        logits = torch.zeros(len(features), *there.shape, device=features.device)
        logits[:, there] = self.trust * words.sum(dim=1) / given.sum(dim=1, keepdim=True)
        return logits

    def penalty(self, rows: Tensor) -> Tensor:
        """Returns the mean squared relative difference of the lengths of rows [T, D] to those of the vocabulary."""
        return (rows.norm(dim=1) / self.norm - 1).square().mean()
