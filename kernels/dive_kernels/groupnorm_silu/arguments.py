"""The inputs of `groupnorm_silu`, shared by every implementation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dive_kernels.fp8.numbers import E4M3


class Arguments(NamedTuple):
    """`skip` follows `x` along the channels; `shift` is added to every pixel of `x` first.

    With `scale` the result is e4m3.
    """

    x: Tensor  # [R, C1, h, w]
    weight: Tensor  # [C1 + C2]
    bias: Tensor  # [C1 + C2]
    groups: int
    eps: float
    skip: Tensor | None = None  # [R, C2, h, w]
    shift: Tensor | None = None  # [R or 1, C1]
    silu: bool = True
    scale: float | None = None

    @property
    def result_type(self) -> torch.dtype:
        return self.x.dtype if self.scale is None else E4M3

    @property
    def key(self) -> dict[str, int]:
        """What one compilation or measurement is for."""
        skip = 0 if self.skip is None else self.skip.shape[1]
        shift, silu = int(self.shift is not None), int(self.silu)
        found = {"channels": self.x.shape[1] + skip, "skip": skip, "shift": shift, "silu": silu}
        return found if self.scale is None else {**found, "fp8": 1}
