"""The one place that chooses an implementation of `geglu`, and the torch operator around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dive_kernels.geglu.eager import geglu_eager
from dive_kernels.geglu.plan import plan
from dive_kernels.geglu.reference import geglu_reference
from dive_kernels.reasons import choose, one_place, refuse, why_not_here
from dive_kernels.run import capability, run
from dive_kernels.table import fastest, measured

IMPLS = ("auto", "reference", "fused", "eager")


def geglu(x: Tensor, weight: Tensor, bias: Tensor | None, *, impl: str = "auto") -> Tensor:
    """hidden * gelu(gate) of a projection: `x` [..., K], `weight` [2N, K], `bias` [2N] or None -> [..., N], typed like `x`.

    The first N outputs of the projection are hidden, the others gate, as in diffusers' GEGLU; GELU is the exact one. `auto`
    takes the fastest implementation by the table of measurements, torch's own kernels (`eager`) where there is none; the
    others run or raise `ValueError` with every reason why not. There are no gradients.
    """
    result: Tensor = torch.ops.dive.geglu(x, weight, bias, impl)
    return result


def why_not_fused(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[str]:
    """Every reason why the kernel cannot take these tensors; empty if it can."""
    tensors = _named(x, weight, bias)
    reasons = why_not_here(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            reasons.append(f"needs a last stride of 1, {name} has strides {tuple(tensor.stride())}")
    if x.dim() and not _flattens(x):
        reasons.append(f"needs one stride from token to token, x {tuple(x.shape)} has strides {tuple(x.stride())}")
    return reasons


@torch.library.custom_op("dive::geglu", mutates_args=())
def _geglu(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    choose("geglu", impl, IMPLS)
    refuse("geglu", _misfits(x, weight, bias))
    reasons = [] if impl in ("reference", "eager") else why_not_fused(x, weight, bias)
    if impl == "fused":
        refuse("geglu: impl='fused' cannot run", reasons)
    if impl == "auto":
        impl = _fastest(x, weight, [] if reasons else ["fused"])
    if impl == "fused":
        launch, output = plan(x, weight, bias, capability(x.device))
        run(launch)
        return output
    return geglu_reference(x, weight, bias) if impl == "reference" else geglu_eager(x, weight, bias)


@_geglu.register_fake
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2))


def _fastest(x: Tensor, weight: Tensor, kernels: list[str]) -> str:
    """What `auto` takes: the kernel of ours only where a measurement says that it wins."""
    key = {"inner": weight.shape[1], "outer": weight.shape[0] // 2}
    work = math.prod(x.shape[:-1]) * key["outer"]
    return fastest(measured("geglu", capability(x.device), x.dtype, key, work), [*kernels, "eager"], "eager")


def _misfits(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[str]:
    """What no implementation can work with."""
    tensors = _named(x, weight, bias)
    reasons = one_place(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            reasons.append(f"{name} must be floating point, got {tensor.dtype}")
        elif tensor.dtype != x.dtype:
            reasons.append(f"{name} is {tensor.dtype}, x is {x.dtype}")
    if weight.dim() != 2 or 0 in weight.shape or weight.shape[0] % 2:
        return [*reasons, f"weight must be [2N, K], got shape {tuple(weight.shape)}"]
    if not x.dim() or x.shape[-1] != weight.shape[1]:
        reasons.append(f"x must be [..., {weight.shape[1]}], got shape {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        reasons.append(f"bias must be [{weight.shape[0]}], got shape {tuple(bias.shape)}")
    return reasons


def _flattens(x: Tensor) -> bool:
    """Whether `x` [..., K] is [tokens, K] without a copy."""
    try:
        x.view(-1, x.shape[-1])
    except RuntimeError:
        return False
    return True


def _named(x: Tensor, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    tensors = {"x": x, "weight": weight}
    return tensors if bias is None else {**tensors, "bias": bias}
