"""`groupnorm_silu` by torch's own kernels, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dive_kernels.fp8.numbers import quantised
from dive_kernels.groupnorm_silu.arguments import Arguments


def groupnorm_silu_eager(given: Arguments) -> Tensor:
    """Computes the reference with sums rounded to the type of `x` in between, as a diffusers UNet does."""
    x, weight, bias, groups, eps, skip, shift, silu, scale = given
    if shift is not None:
        x = x + shift[:, :, None, None]
    if skip is not None:
        x = torch.cat([x, skip], 1)
    x = torch.group_norm(x, groups, weight, bias, eps)  # functional.group_norm refuses groups of one value
    x = functional.silu(x) if silu else x
    x = x if scale is None else quantised(x, scale)
    return x.contiguous(memory_format=torch.channels_last)  # torch's GroupNorm may leave channels_last
