"""The inputs of `groupnorm_silu`, shared by every implementation."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """`skip` follows `x` along the channels; `shift` is added to every pixel of `x` first."""

    x: Tensor  # [R, C1, h, w]
    weight: Tensor  # [C1 + C2]
    bias: Tensor  # [C1 + C2]
    groups: int
    eps: float
    skip: Tensor | None = None  # [R, C2, h, w]
    shift: Tensor | None = None  # [R or 1, C1]
    silu: bool = True

    @property
    def key(self) -> dict[str, int]:
        """What one compilation or measurement is for."""
        skip = 0 if self.skip is None else self.skip.shape[1]
        shift, silu = int(self.shift is not None), int(self.silu)
        return {"channels": self.x.shape[1] + skip, "skip": skip, "shift": shift, "silu": silu}
