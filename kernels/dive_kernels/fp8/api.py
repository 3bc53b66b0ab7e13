"""Chooses an implementation of `product` and `convolution`; the latter is a torch operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dive_kernels.fp8 import cudnn_graphs
from dive_kernels.fp8.reference import convolution_reference, product_reference
from dive_kernels.reasons import choose, refuse
from dive_kernels.run import capability

IMPLS = ("auto", "reference", "library")
CONVOLUTION_CHIPS = 90  # the first compute capability that cuDNN's FP8 convolutions run on


def product(
    x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor, dtype: torch.dtype, *, impl: str = "auto"
) -> Tensor:
    """Returns (`x` * `x_scale`) @ (`weight` * `weight_scale`).T of e4m3 numbers: [M, K], [N, K], [M, 1], [1, N] -> [M, N].

    `auto` takes torch's kernels ("library") on a GPU and their emulation ("reference") elsewhere. "library" accumulates as
    fast as the chip does, in about 14 bits on 9.0 (DeepSeek-V3, arXiv 2412.19437), and rounds the result to bfloat16
    first: both are less than e4m3 rounds. bfloat16 is the one type that torch's row-wise kernels always write: where
    CUTLASS's are taken (8.9, 10.0, CUDA before 12.9), fp16 is refused, or holds the bits of bfloat16 (pytorch#187569).
    """
    choose("fp8.product", impl, IMPLS)
    if not _by_library(impl, x):
        return product_reference(x, weight, x_scale, weight_scale, dtype)
    made = torch._scaled_mm(x, weight.T, x_scale, weight_scale, out_dtype=torch.bfloat16, use_fast_accum=True)
    return made.to(dtype)


def convolution(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype, *, impl: str = "auto"
) -> Tensor:
    """Returns x * weight, times `scale`, plus `bias`, a value each for an output channel: [R, C, h, w] -> [R, N, h, w].

    `x` and `weight` [N, C, k, k] are e4m3, channels_last; the convolution has stride 1 and keeps the size (k is odd).
    `auto` takes cuDNN's kernels ("library") on a GPU and their emulation ("reference") elsewhere. There are no gradients.
    Raises `ValueError` with every reason why "library" cannot run, and `cudnn_graphs.NoPlan` if cuDNN has no kernel.
    """
    result: Tensor = torch.ops.dive.fp8_convolution(x, weight, scale, bias, dtype, impl)
    return result


def why_no_convolution(device: torch.device, weight: Sequence[int]) -> list[str]:
    """Returns every reason why cuDNN cannot convolve with a weight of that shape on `device`."""
    chip, reasons = capability(device), []
    if chip < CONVOLUTION_CHIPS:
        found = f"{chip // 10}.{chip % 10}" if chip else str(device)
        reasons.append(f"needs compute capability {CONVOLUTION_CHIPS / 10} or later, got {found}")
    for channels in weight[:2]:
        if channels % cudnn_graphs.MULTIPLE:
            reasons.append(f"needs channels in multiples of {cudnn_graphs.MULTIPLE}, got {channels}")
    return [*reasons, *filter(None, [cudnn_graphs.missing()])]


@torch.library.custom_op("dive::fp8_convolution", mutates_args=())
def _convolution(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    choose("fp8.convolution", impl, IMPLS)
    if not _by_library(impl, x):
        return convolution_reference(x, weight, scale, bias, dtype)
    refuse("fp8.convolution: impl='library' cannot run", why_no_convolution(x.device, weight.shape))
    out = _fake(x, weight, scale, bias, dtype, impl)
    x, weight = (given.contiguous(memory_format=torch.channels_last) for given in (x, weight))  # no copies, as a rule
    cudnn_graphs.convolved(x, weight, scale, bias, out)
    return out


@_convolution.register_fake
def _fake(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(size, dtype=others[2], device=x.device, memory_format=torch.channels_last)


def _by_library(impl: str, x: Tensor) -> bool:
    return impl == "library" or (impl == "auto" and x.is_cuda)
