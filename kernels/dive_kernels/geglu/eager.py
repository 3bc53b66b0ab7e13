"""`geglu` by torch's own kernels, one after the other."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def geglu_eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As the reference, but projection and GELU are rounded to the type of `x`, as a diffusers UNet has it."""
    hidden, gate = functional.linear(x, weight, bias).chunk(2, -1)
    return hidden * functional.gelu(gate)
