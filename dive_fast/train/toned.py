"""Learning of tones: the rows of identities with those of their tones behind them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dive_fast.models.tones import Tones

if TYPE_CHECKING:
    from torch import Tensor

    from dive_fast.models.phrase import Phrase


class LearnedTones(torch.nn.Module):
    """Tones whose weights are trained, on words in units of the vocabulary's deviation; all start in the middle."""

    levels: Tensor
    unit: Tensor

    def __init__(self, levels: Tensor, phrase: Phrase, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("levels", levels.detach().clone())
        self.register_buffer("unit", table.std())
        self.own = torch.nn.Parameter(torch.zeros(table.shape[1]))
        self.beside = torch.nn.Parameter(torch.zeros(table.shape[1]))
        self.bias = torch.nn.Parameter(torch.zeros(len(phrase.toned)))

    def forward(self) -> Tones:
        return Tones(self.levels, self.own / self.unit, self.beside / self.unit, self.bias)


class TonedRows(torch.nn.Module):
    """The rows of identities, each behind its words with its tones: float [identities * (words + tones), D].

    `rows` gives those of the words, `tones` computes the others: `LearnedTones`, or the finished ones of an adapter.
    """

    def __init__(self, rows: torch.nn.Module, tones: LearnedTones | Tones, phrase: Phrase) -> None:
        super().__init__()
        self.rows, self.tones, self.phrase = rows, tones, phrase
        self._held = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets no gradient through to the words for the block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def forward(self) -> Tensor:
        rows: Tensor = self.rows()
        rows = (rows.detach() if self._held else rows).unflatten(0, (-1, len(self.phrase.choices)))
        tones = self.tones() if isinstance(self.tones, LearnedTones) else self.tones
        with torch.autocast(rows.device.type, enabled=False):
            return torch.cat([rows, tones.rows(self.phrase, rows)], dim=1).flatten(0, 1)
