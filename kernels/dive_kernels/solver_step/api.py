"""The one place that chooses an implementation of `solver_step`, and the torch operator around it."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.reasons import choose, one_place, refuse, why_not_here
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
    """Guidance and one DPM-Solver++ 2M update: returns (next x, x0), shaped and typed like `x`.

    `auto` takes the kernel where it runs and the reference elsewhere: no library has the op, and the kernel moves the
    fewest bytes. `fused` runs the kernel or raises `ValueError` with every reason why it cannot. There are no gradients.
    """
    following, x0 = torch.ops.dive.solver_step(eps_uncond, eps_cond, x, previous_x0, [float(n) for n in step], impl)
    return following, x0


def why_not_fused(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None) -> list[str]:
    """Every reason why the kernel cannot take these tensors; empty if it can."""
    tensors = _named(eps_uncond, eps_cond, x, previous_x0)
    reasons = why_not_here(tensors)
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            reasons.append(f"needs contiguous tensors, {name} has strides {tuple(tensor.stride())}")
    return reasons


@torch.library.custom_op("dive::solver_step", mutates_args=())
def _solver_step(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: list[float], impl: str
) -> tuple[Tensor, Tensor]:
    choose("solver_step", impl, IMPLS)
    coefficients = StepCoefficients(*step)
    refuse("solver_step", _misfits(eps_uncond, eps_cond, x, previous_x0, coefficients))
    reasons = [] if impl == "reference" else why_not_fused(eps_uncond, eps_cond, x, previous_x0)
    if impl == "fused":
        refuse("solver_step: impl='fused' cannot run", reasons)
    if impl == "reference" or reasons:
        return solver_step_reference(eps_uncond, eps_cond, x, previous_x0, coefficients)
    launch, outputs = plan(eps_uncond, eps_cond, x, previous_x0, coefficients)
    run(launch)
    return outputs


@_solver_step.register_fake
def _fake(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: list[float], impl: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _misfits(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: StepCoefficients
) -> list[str]:
    """What no implementation can work with."""
    tensors = _named(eps_uncond, eps_cond, x, previous_x0)
    reasons = one_place(tensors)
    for name, tensor in tensors.items():
        if tensor.shape != x.shape:
            reasons.append(f"{name} has shape {tuple(tensor.shape)}, x has {tuple(x.shape)}")
        if not tensor.is_floating_point():
            reasons.append(f"{name} must be floating point, got {tensor.dtype}")
    if step.alpha <= 0:
        reasons.append(f"alpha must be above 0, got {step.alpha}: pure noise has no x0")
    return reasons


def _named(eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None) -> dict[str, Tensor]:
    tensors = {"eps_uncond": eps_uncond, "eps_cond": eps_cond, "x": x}
    return tensors if previous_x0 is None else {**tensors, "previous_x0": previous_x0}
