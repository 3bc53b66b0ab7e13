"""What `groupnorm_silu` computes, in readable torch. This file defines correctness, on any device and float type."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.fp8.numbers import quantised
from dive_kernels.groupnorm_silu.arguments import Arguments


def groupnorm_silu_reference(given: Arguments) -> Tensor:
    """Returns Group Normalization (Wu and He, 2018), then SiLU: [R, C1 + C2, h, w] in the type of `x`, channels_last;
    with `scale` it is divided by that and rounded to e4m3.

    The arithmetic is float32 for half types.
    """
    x, weight, bias, groups, eps, skip, shift, silu, scale = given
    compute = torch.promote_types(x.dtype, torch.float32)
    value = x.to(compute)
    if shift is not None:
        value = value + shift.to(compute)[:, :, None, None]
    if skip is not None:
        value = torch.cat([value, skip.to(compute)], 1)
    grouped = value.unflatten(1, (groups, -1))  # [R, groups, C / groups, h, w]
    centred = grouped - grouped.mean((2, 3, 4), keepdim=True)
    variance = centred.square().mean((2, 3, 4), keepdim=True)
    normal = (centred / (variance + eps).sqrt()).flatten(1, 2)
    result = normal * weight.to(compute)[:, None, None] + bias.to(compute)[:, None, None]
    if silu:
        result = result * torch.sigmoid(result)
    result = result.to(x.dtype) if scale is None else quantised(result, scale)
    return result.contiguous(memory_format=torch.channels_last)
