"""What `product` and `convolution` compute, in readable torch: the emulation of FP8 on any device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def product_reference(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 `x` [M, K] and `weight` [N, K], scales [M, 1] and [1, N] -> [M, N]. Sums are float32, of float64 float64."""
    compute = torch.promote_types(dtype, torch.float32)
    return (x.to(compute) @ weight.to(compute).T * x_scale * weight_scale).to(dtype)


def convolution_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """e4m3 `x` [R, C, h, w] and `weight` [N, C, k, k], `scale` and `bias` [N] -> [R, N, h, w], channels_last."""
    compute = torch.promote_types(dtype, torch.float32)
    sums = functional.conv2d(x.to(compute), weight.to(compute), padding=weight.shape[-1] // 2)
    out = sums * scale[:, None, None] + bias[:, None, None]
    return out.to(dtype).contiguous(memory_format=torch.channels_last)
