"""The one place that chooses an implementation of `groupnorm_silu`, and the torch operator around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dive_kernels.groupnorm_silu.eager import groupnorm_silu_eager
from dive_kernels.groupnorm_silu.plan import plan
from dive_kernels.groupnorm_silu.reference import groupnorm_silu_reference
from dive_kernels.reasons import choose, one_place, refuse, why_not_here
from dive_kernels.run import capability, run
from dive_kernels.table import fastest, measured

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
    impl: str = "auto",
) -> Tensor:
    """GroupNorm, then SiLU if `silu`, of cat([x, skip], 1): [R, C1 + C2, h, w], channels_last, typed like `x`.

    `x` [R, C1, h, w], `skip` [R, C2, h, w] or None; `shift` [R or 1, C1] or None is added to each channel of `x` first,
    as a resnet adds its time embedding, and goes without `skip`. `weight` and `bias` are [C1 + C2]. `auto` takes the
    fastest implementation by the table of measurements, torch's own kernels (`eager`) where there is none; the others
    run or raise `ValueError` with every reason why not. There are no gradients.
    """
    result: Tensor = torch.ops.dive.groupnorm_silu(x, weight, bias, groups, eps, skip, shift, silu, impl)
    return result


def why_not_fused(
    x: Tensor, weight: Tensor, bias: Tensor, *, skip: Tensor | None = None, shift: Tensor | None = None
) -> list[str]:
    """Every reason why the kernels cannot take these tensors; empty if they can."""
    reasons = why_not_here(_named(x, weight, bias, skip, shift))
    for name, image in _present({"x": x, "skip": skip}).items():
        if image.dim() == 4 and not image.is_contiguous(memory_format=torch.channels_last):
            reasons.append(f"needs channels_last images, {name} has strides {tuple(image.stride())}")
    for name, vector in _present({"weight": weight, "bias": bias, "shift": shift}).items():
        if vector.dim() and vector.shape[-1] > 1 and vector.stride(-1) != 1:
            reasons.append(f"needs a last stride of 1, {name} has strides {tuple(vector.stride())}")
    row = math.prod(x.shape[1:]) + (math.prod(skip.shape[1:]) if skip is not None else 0)
    if row > LARGEST_ROW:
        reasons.append(f"needs at most {LARGEST_ROW} elements a row, got {row}")
    return reasons


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
    impl: str,
) -> Tensor:
    choose("groupnorm_silu", impl, IMPLS)
    refuse("groupnorm_silu", _misfits(x, weight, bias, groups, eps, skip, shift))
    reasons = [] if impl in ("reference", "eager") else why_not_fused(x, weight, bias, skip=skip, shift=shift)
    if impl == "fused":
        refuse("groupnorm_silu: impl='fused' cannot run", reasons)
    if impl == "auto":
        impl = _fastest(x, skip, shift, silu, [] if reasons else ["fused"])
    if impl == "fused":
        launches, output = plan(x, weight, bias, groups, eps, skip, shift, silu)
        for launch in launches:
            run(launch)
        return output
    library = groupnorm_silu_reference if impl == "reference" else groupnorm_silu_eager
    return library(x, weight, bias, groups, eps, skip, shift, silu)


@_groupnorm_silu.register_fake
def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    skip: Tensor | None,
    shift: Tensor | None,
    silu: bool,
    impl: str,
) -> Tensor:
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    shape = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fastest(x: Tensor, skip: Tensor | None, shift: Tensor | None, silu: bool, kernels: list[str]) -> str:
    """What `auto` takes: a kernel of ours only where a measurement says that it wins."""
    others = 0 if skip is None else skip.shape[1]
    channels = x.shape[1] + others
    key = {"channels": channels, "skip": others, "shift": int(shift is not None), "silu": int(silu)}
    work = x.shape[0] * channels * x.shape[2] * x.shape[3]
    times = measured("groupnorm_silu", capability(x.device), x.dtype, key, work)
    return fastest(times, [*kernels, "eager"], "eager")


def _misfits(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, skip: Tensor | None, shift: Tensor | None
) -> list[str]:
    """What no implementation can work with."""
    tensors = _named(x, weight, bias, skip, shift)
    reasons = one_place(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            reasons.append(f"{name} must be floating point, got {tensor.dtype}")
        elif tensor.dtype != x.dtype:
            reasons.append(f"{name} is {tensor.dtype}, x is {x.dtype}")
    if not eps > 0:
        reasons.append(f"eps must be above 0, got {eps}")
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


def _named(x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, shift: Tensor | None) -> dict[str, Tensor]:
    return _present({"x": x, "weight": weight, "bias": bias, "skip": skip, "shift": shift})


def _present(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
