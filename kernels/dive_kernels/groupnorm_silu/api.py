"""Chooses an implementation of `groupnorm_silu` and wraps it as a torch operator."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dive_kernels.fp8.numbers import CHIPS
from dive_kernels.groupnorm_silu.arguments import Arguments
from dive_kernels.groupnorm_silu.eager import groupnorm_silu_eager
from dive_kernels.groupnorm_silu.plan import plan
from dive_kernels.groupnorm_silu.reference import groupnorm_silu_reference
from dive_kernels.launch import Launch
from dive_kernels.reasons import against_fused, last_strides, one_place, one_type, present, why_not_here
from dive_kernels.replay import launched
from dive_kernels.run import capability
from dive_kernels.table import fastest, measured, unmeasured

IMPLS = ("auto", "reference", "fused", "eager")
LARGEST_ROW = 2**31 - 1  # elements: inside a row the kernels count in 32 bits


def groupnorm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    *,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    scale: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Returns GroupNorm, then SiLU if `silu`, of cat([x, skip], 1): [R, C1 + C2, h, w], channels_last, typed like `x`.

    `x` is [R, C1, h, w], `skip` [R, C2, h, w] or None, `weight` and `bias` [C1 + C2]. `shift` [R or 1, C1] is added to
    each channel of `x` first, as a resnet adds its time embedding; it excludes `skip`. With `scale` the result is
    divided by it and rounded to e4m3, cut off at 448 (`fp8.norm_scale` gives a scale that cuts nothing off). `auto` takes
    the fastest implementation in the table of measurements, and where nobody measured that of `table.unmeasured` or torch's
    own kernels (`eager`). Any other `impl` runs or raises `ValueError` with every reason against it. There are no gradients.
    """
    result: Tensor = torch.ops.dive.groupnorm_silu(x, weight, bias, groups, eps, skip, shift, silu, scale, impl)
    return result


def why_not_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    fp8: bool = False,
) -> list[str]:
    """Returns every reason why the kernels cannot take these tensors; empty if they can."""
    images = present(x=x, skip=skip)
    vectors = present(weight=weight, bias=bias, shift=shift)
    reasons = why_not_here({**images, **vectors})
    for name, image in images.items():
        if image.dim() == 4 and not image.is_contiguous(memory_format=torch.channels_last):
            reasons.append(f"needs channels_last images, {name} has strides {tuple(image.stride())}")
    if fp8 and x.device.type == "cuda" and capability(x.device) < CHIPS:
        reasons.append(f"writes e4m3 on compute capability {CHIPS / 10} or later, got {capability(x.device) / 10}")
    row = sum(math.prod(image.shape[1:]) for image in images.values())
    if row > LARGEST_ROW:
        reasons.append(f"needs at most {LARGEST_ROW} elements a row, got {row}")
    return reasons + last_strides(vectors)


@torch.library.custom_op("dive::groupnorm_silu", mutates_args=())
def _groupnorm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    skip: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    scale: float | None,
    impl: str,
) -> Tensor:
    given = Arguments(x, weight, bias, groups, eps, skip, shift, silu, scale)
    if impl == "fused":
        return launched(_planned, *given)
    against = _against(given, impl)
    if impl == "auto" and _fastest(given, [] if against else ["fused"]) == "fused":
        return launched(_planned, *given)
    return groupnorm_silu_reference(given) if impl == "reference" else groupnorm_silu_eager(given)


@_groupnorm_silu.register_fake
def _fake(*given: Any) -> Tensor:
    x, arguments = given[0], Arguments(*given[:-1])
    shape = (x.shape[0], arguments.key["channels"], *x.shape[2:])
    return torch.empty(shape, dtype=arguments.result_type, device=x.device, memory_format=torch.channels_last)


def _planned(*given: Any) -> tuple[list[Launch], Tensor]:
    """Returns the kernels' launches and their output; raises `ValueError` with every reason against them."""
    _against(Arguments(*given), "fused")
    return plan(Arguments(*given))


def _against(given: Arguments, impl: str) -> list[str]:
    """As `reasons.against_fused`."""
    x, weight, bias, skip, shift = given.x, given.weight, given.bias, given.skip, given.shift
    fp8 = given.scale is not None
    why_not = lambda: why_not_fused(x, weight, bias, skip=skip, shift=shift, fp8=fp8)  # noqa: E731
    return against_fused("groupnorm_silu", impl, IMPLS, _misfits(given), why_not)


def _fastest(given: Arguments, kernels: list[str]) -> str:
    """Returns what `auto` takes."""
    x, key = given.x, given.key
    work = x.shape[0] * key["channels"] * x.shape[2] * x.shape[3]
    chip = capability(x.device)
    default = unmeasured("groupnorm_silu", chip, x.dtype, bool(kernels)) or "eager"
    return fastest(measured("groupnorm_silu", chip, x.dtype, key, work), [*kernels, "eager"], default)


def _misfits(given: Arguments) -> list[str]:
    """Returns what no implementation can take."""
    x, weight, bias, groups, eps, skip, shift, _, scale = given
    tensors = present(x=x, weight=weight, bias=bias, skip=skip, shift=shift)
    reasons = one_place(tensors) + one_type(tensors)
    if not eps > 0:
        reasons.append(f"eps must be above 0, got {eps}")
    if scale is not None and not 0 < scale < math.inf:
        reasons.append(f"scale must be above 0 and finite, got {scale}")
    if skip is not None and shift is not None:
        reasons.append("skip and shift cannot be given together")
    if x.dim() != 4:
        return [*reasons, f"x must be [rows, channels, height, width], got shape {tuple(x.shape)}"]
    rows, own, *size = x.shape
    if 0 in (own, *size):
        reasons.append(f"x has no elements in a row, its shape is {tuple(x.shape)}")
    if skip is not None and (skip.dim() != 4 or (skip.shape[0], *skip.shape[2:]) != (rows, *size)):
        reasons.append(f"skip has shape {tuple(skip.shape)}, x has {tuple(x.shape)}: only the channels may differ")
    if shift is not None and tuple(shift.shape) not in ((rows, own), (1, own)):
        reasons.append(f"shift must be [{rows} or 1, {own}], got shape {tuple(shift.shape)}")
    channels = own + (skip.shape[1] if skip is not None and skip.dim() == 4 else 0)
    for name, vector in (("weight", weight), ("bias", bias)):
        if tuple(vector.shape) != (channels,):
            reasons.append(f"{name} must be [{channels}], got shape {tuple(vector.shape)}")
    if groups < 1 or channels % groups:
        reasons.append(f"{channels} channels cannot be divided into {groups} groups")
    return reasons
