"""A token embedding whose last rows are trained and whose vocabulary is frozen: textual inversion (arXiv 2208.01618)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from dive_fast.models.phrase import Phrase

_LEAST = 7.0  # a word that a tagger excludes starts at a thousandth of the likeliest one's weight


class PhraseRows(torch.nn.Module):
    """What makes the embedding rows of a phrase of free vectors and of the weights that mix words.

    `choices` holds float [words, D] for each learned word: one row is the start of a free vector, several are mixed. `start`
    [F, D] are the starts of the F free vectors; at most W words are mixed in each of M mixes.
    """

    start: Tensor
    words: Tensor
    absent: Tensor
    order: Tensor

    def __init__(self, choices: Sequence[Tensor]) -> None:
        super().__init__()
        free = [k for k, rows in enumerate(choices) if len(rows) == 1]
        mixed = [k for k, rows in enumerate(choices) if len(rows) > 1]
        width, most = choices[0].shape[1], max(len(rows) for rows in choices)
        words, absent = torch.zeros(len(mixed), most, width), torch.zeros(len(mixed), most)
        for row, k in enumerate(mixed):
            words[row, : len(choices[k])] = choices[k]
            absent[row, len(choices[k]) :] = -torch.inf
        self.register_buffer("start", torch.stack([choices[k][0] for k in free]) if free else torch.zeros(0, width))
        self.register_buffer("words", words)
        self.register_buffer("absent", absent, persistent=False)  # both follow from the phrase
        self.register_buffer("order", torch.tensor([*free, *mixed]).argsort(), persistent=False)

    def join(self, free: Tensor, logits: Tensor) -> Tensor:
        """Returns the rows [identities, words, D] of free vectors [identities, F, D] and logits [identities, M, W]."""
        weights = torch.softmax(logits + self.absent, dim=-1)
        with torch.autocast(self.words.device.type, enabled=False):  # mixes stay float32
            mixed = torch.einsum("pmw,mwd->pmd", weights, self.words)
        rows: Tensor = torch.cat([free, mixed], dim=1)[:, self.order]
        return rows


class LearnedRows(PhraseRows):
    """The embedding rows of identities with a common phrase; calling it returns them, float [identities * words, D].

    Free vectors are `free` [identities, F, D], mix weights `logits` [identities, M, W], which start equal.
    """

    def __init__(self, choices: Sequence[Tensor], identities: int) -> None:
        super().__init__(choices)
        mixes, most = self.absent.shape
        self.free = torch.nn.Parameter(self.start.repeat(identities, 1, 1))
        self.logits = torch.nn.Parameter(torch.zeros(identities, mixes, most))

    @classmethod
    def from_rows(cls, rows: Tensor) -> LearnedRows:
        """Returns free vectors that start at `rows` [identities, words, D]."""
        learned = cls([row[None] for row in rows[0]], len(rows))
        with torch.no_grad():
            learned.free.copy_(rows)
        return learned

    def start_at(self, logits: Tensor) -> None:
        """Starts the mixed words at `logits` [identities, M, W], clamped to leave training able to choose any word."""
        with torch.no_grad():
            top = (logits + self.absent).amax(dim=-1, keepdim=True)
            self.logits.copy_((logits - top).clamp(min=-_LEAST))

    def forward(self) -> Tensor:
        return self.join(self.free, self.logits).flatten(0, 1)


def choices_of(phrase: Phrase, tokenizer: Any, table: Tensor) -> list[Tensor]:
    """Returns the rows of `table` [V, D] that each learned word of a phrase starts from."""

    def row(word: str) -> Tensor:
        return table[tokenizer(word, add_special_tokens=False)["input_ids"]].mean(dim=0)

    return [torch.stack([row(word) for word in words]) for words in phrase.choices]


class PartlyLearned(torch.nn.Module):
    """Token embedding with a frozen vocabulary and learned last rows, which alone have parameters."""

    frozen: Tensor

    def __init__(self, frozen: Tensor, rows: torch.nn.Module) -> None:
        super().__init__()
        self.register_buffer("frozen", frozen.detach().clone())
        self.rows = rows

    def forward(self, token_ids: Tensor) -> Tensor:
        """Maps token ids int64 [...] to embeddings [..., D]; ids past the frozen table are learned rows."""
        vocabulary = self.frozen
        learned = token_ids >= len(vocabulary)
        old = torch.nn.functional.embedding(token_ids.clamp(max=len(vocabulary) - 1), vocabulary)
        new = torch.nn.functional.embedding((token_ids - len(vocabulary)).clamp(min=0), self.rows())
        return torch.where(learned.unsqueeze(-1), new, old)
