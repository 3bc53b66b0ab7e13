"""A vocabulary of which only some rows learn: textual inversion without touching the rest of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class PartlyLearned(torch.nn.Module):
    """Token embedding whose first rows are frozen and whose last rows, one per identity, are a parameter.

    Only `rows` [N, D] gets gradients, so neither weight decay nor the optimizer's moments can move the vocabulary
    (Gal et al., arXiv 2208.01618, learn one such row).
    """

    def __init__(self, frozen: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("frozen", frozen.detach().clone())
        self.rows = torch.nn.Parameter(rows.detach().clone())

    def forward(self, token_ids: Tensor) -> Tensor:
        """Token ids int64 [...] to embeddings [..., D]; ids past the frozen table name identity rows."""
        vocabulary: Tensor = self.frozen  # type: ignore[assignment]
        learned = token_ids >= len(vocabulary)
        old = torch.nn.functional.embedding(token_ids.clamp(max=len(vocabulary) - 1), vocabulary)
        new = torch.nn.functional.embedding((token_ids - len(vocabulary)).clamp(min=0), self.rows)
        return torch.where(learned.unsqueeze(-1), new, old)
