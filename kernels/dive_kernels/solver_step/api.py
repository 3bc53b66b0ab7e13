"""The one place that chooses an implementation of `solver_step`."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from dive_kernels.solver_step.coefficients import StepCoefficients
from dive_kernels.solver_step.reference import solver_step_reference

Impl = Literal["auto", "reference", "fused"]
FUSED_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def solver_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    x: Tensor,
    previous_x0: Tensor | None,
    step: StepCoefficients,
    *,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """Guidance and one DPM-Solver++ 2M update: returns (next x, x0), shaped and typed like `x`.

    `auto` takes the kernel where it runs and the reference elsewhere; `fused` runs the kernel or raises `ValueError`
    with every reason why it cannot.
    """
    if impl not in ("auto", "reference", "fused"):
        raise ValueError(f"solver_step: impl must be auto, reference or fused, got {impl!r}")
    _check_inputs(eps_uncond, eps_cond, x, previous_x0, step)
    reasons = [] if impl == "reference" else why_not_fused(eps_uncond, eps_cond, x, previous_x0)
    if impl == "fused" and reasons:
        raise ValueError("solver_step: impl='fused' cannot run: " + "; ".join(reasons))
    if impl == "reference" or reasons:
        return solver_step_reference(eps_uncond, eps_cond, x, previous_x0, step)
    from dive_kernels.solver_step.fused import solver_step_fused

    return solver_step_fused(eps_uncond, eps_cond, x, previous_x0, step)


def why_not_fused(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None) -> list[str]:
    """Every reason why the kernel cannot take these tensors; empty if it can."""
    tensors = _named(eps_uncond, eps_cond, x, previous_x0)
    reasons = []
    if importlib.util.find_spec("triton") is None:
        reasons.append("needs triton, which is not installed (extra: gpu)")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda" and not interpreted:
            reasons.append(f"needs CUDA tensors, {name} is on {tensor.device}")
        if tensor.dtype not in FUSED_TYPES:
            reasons.append(f"needs float32, float16 or bfloat16, {name} is {tensor.dtype}")
        if not tensor.is_contiguous():
            reasons.append(f"needs contiguous tensors, {name} has strides {tuple(tensor.stride())}")
    return reasons


def _check_inputs(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: StepCoefficients
) -> None:
    """What no implementation can work with."""
    for name, tensor in _named(eps_uncond, eps_cond, x, previous_x0).items():
        if tensor.shape != x.shape:
            raise ValueError(f"solver_step: {name} has shape {tuple(tensor.shape)}, x has {tuple(x.shape)}")
        if tensor.device != x.device:
            raise ValueError(f"solver_step: {name} is on {tensor.device}, x on {x.device}")
        if not tensor.is_floating_point():
            raise ValueError(f"solver_step: {name} must be floating point, got {tensor.dtype}")
    if step.alpha <= 0:
        raise ValueError(f"solver_step: alpha must be above 0, got {step.alpha}: pure noise has no x0")


def _named(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None) -> dict[str, Tensor]:
    tensors = {"eps_uncond": eps_uncond, "eps_cond": eps_cond, "x": x}
    return tensors if previous_x0 is None else {**tensors, "previous_x0": previous_x0}
