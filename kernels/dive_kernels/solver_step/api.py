"""Chooses an implementation of `solver_step` and wraps it as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dive_kernels.reasons import against_fused, one_place, present, why_not_here
from dive_kernels.run import run
from dive_kernels.solver_step.coefficients import StepCoefficients
from dive_kernels.solver_step.plan import plan
from dive_kernels.solver_step.reference import solver_step_reference

IMPLS = ("auto", "reference", "fused")


def solver_step(
    eps_uncond: Tensor,
    eps_cond: Tensor,
    x: Tensor,
    previous_x0: Tensor | None,
    step: StepCoefficients,
    *,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Returns guidance and one DPM-Solver++ 2M update: (next x, x0), shaped and typed like `x`.

    `auto` takes the kernel if it can run and else the reference: no library has the op, and the kernel moves the fewest
    bytes. `fused` runs the kernel or raises `ValueError` with every reason against it. There are no gradients.
    """
    following, x0 = torch.ops.dive.solver_step(eps_uncond, eps_cond, x, previous_x0, [float(n) for n in step], impl)
    return following, x0


def why_not_fused(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None) -> list[str]:
    """Returns every reason why the kernel cannot take these tensors; empty if it can."""
    tensors = present(eps_uncond=eps_uncond, eps_cond=eps_cond, x=x, previous_x0=previous_x0)
    reasons = why_not_here(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            reasons.append(f"needs contiguous tensors, {name} has strides {tuple(tensor.stride())}")
    return reasons


@torch.library.custom_op("dive::solver_step", mutates_args=())
def _solver_step(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: list[float], impl: str
) -> tuple[Tensor, Tensor]:
    tensors, coefficients = (eps_uncond, eps_cond, x, previous_x0), StepCoefficients(*step)
    misfits = _misfits(*tensors, coefficients)
    against = against_fused("solver_step", impl, IMPLS, misfits, lambda: why_not_fused(*tensors))
    if impl == "reference" or against:
        return solver_step_reference(*tensors, coefficients)
    launch, outputs = plan(*tensors, coefficients)
    run(launch)
    return outputs


@_solver_step.register_fake
def _fake(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _misfits(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: StepCoefficients
) -> list[str]:
    """Returns what no implementation can take."""
    tensors = present(eps_uncond=eps_uncond, eps_cond=eps_cond, x=x, previous_x0=previous_x0)
    reasons = one_place(tensors)
    for name, tensor in tensors.items():
        if tensor.shape != x.shape:
            reasons.append(f"{name} has shape {tuple(tensor.shape)}, x has {tuple(x.shape)}")
        if not tensor.is_floating_point():
            reasons.append(f"{name} must be floating point, got {tensor.dtype}")
    if step.alpha <= 0:
        reasons.append(f"alpha must be above 0, got {step.alpha}: pure noise has no x0")
    return reasons
