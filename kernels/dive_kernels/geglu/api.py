"""Chooses an implementation of `geglu` and wraps it as a torch operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dive_kernels.geglu.eager import geglu_eager
from dive_kernels.geglu.plan import plan
from dive_kernels.geglu.reference import geglu_reference
from dive_kernels.launch import Launch
from dive_kernels.reasons import against_fused, last_strides, one_place, one_type, present, why_not_here
from dive_kernels.replay import launched
from dive_kernels.run import capability
from dive_kernels.table import fastest, measured, unmeasured

IMPLS = ("auto", "reference", "fused", "eager")


def geglu(x: Tensor, weight: Tensor, bias: Tensor | None, *, impl: str = "auto") -> Tensor:
    """Returns hidden * gelu(gate) of a projection: `x` [..., K], `weight` [2N, K], `bias` [2N] or None -> [..., N].

    The first N outputs of the projection are hidden, the others gate, as in diffusers' GEGLU; GELU is exact and the result
    has the type of `x`. `auto` takes the fastest implementation in the table of measurements, and where nobody measured
    that of `table.unmeasured` or torch's own kernels (`eager`). Any other `impl` runs or raises `ValueError` with every
    reason against it. There are no gradients.
    """
    result: Tensor = torch.ops.dive.geglu(x, weight, bias, impl)
    return result


def why_not_fused(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[str]:
    """Returns every reason why the kernel cannot take these tensors; empty if it can."""
    tensors = present(x=x, weight=weight, bias=bias)
    reasons = why_not_here(tensors) + last_strides(tensors)
    if x.dim() and not _flattens(x):
        reasons.append(f"needs one stride from token to token, x {tuple(x.shape)} has strides {tuple(x.stride())}")
    return reasons


@torch.library.custom_op("dive::geglu", mutates_args=())
def _geglu(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    given = (x, weight, bias)
    if impl == "fused":
        return launched(_planned, *given)
    against = against_fused("geglu", impl, IMPLS, _misfits(*given), lambda: why_not_fused(*given))
    if impl == "auto" and _fastest(x, weight, [] if against else ["fused"]) == "fused":
        return launched(_planned, *given)
    return geglu_reference(*given) if impl == "reference" else geglu_eager(*given)


def _planned(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[list[Launch], Tensor]:
    """Returns the kernel's launch and its output; raises `ValueError` with every reason against it."""
    given = (x, weight, bias)
    against_fused("geglu", "fused", IMPLS, _misfits(*given), lambda: why_not_fused(*given))
    launch, output = plan(*given, capability(x.device))
    return [launch], output


@_geglu.register_fake
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] // 2))


def _fastest(x: Tensor, weight: Tensor, kernels: list[str]) -> str:
    """Returns what `auto` takes."""
    key = {"inner": weight.shape[1], "outer": weight.shape[0] // 2}
    work = math.prod(x.shape[:-1]) * key["outer"]
    chip = capability(x.device)
    default = unmeasured("geglu", chip, x.dtype, bool(kernels)) or "eager"
    return fastest(measured("geglu", chip, x.dtype, key, work), [*kernels, "eager"], default)


def _misfits(x: Tensor, weight: Tensor, bias: Tensor | None) -> list[str]:
    """Returns what no implementation can take."""
    tensors = present(x=x, weight=weight, bias=bias)
    reasons = one_place(tensors) + one_type(tensors)
    if weight.dim() != 2 or 0 in weight.shape or weight.shape[0] % 2:
        return [*reasons, f"weight must be [2N, K], got shape {tuple(weight.shape)}"]
    if not x.dim() or x.shape[-1] != weight.shape[1]:
        reasons.append(f"x must be [..., {weight.shape[1]}], got shape {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        reasons.append(f"bias must be [{weight.shape[0]}], got shape {tuple(bias.shape)}")
    return reasons


def _flattens(x: Tensor) -> bool:
    """Returns whether `x` [..., K] is [tokens, K] without a copy."""
    try:
        x.view(-1, x.shape[-1])
    except RuntimeError:
        return False
    return True
