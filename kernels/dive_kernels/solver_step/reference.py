"""What `solver_step` computes, in readable torch. This file defines correctness, on any device and float type."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.solver_step.coefficients import StepCoefficients


def solver_step_reference(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: StepCoefficients
) -> tuple[Tensor, Tensor]:
    """Returns (next x, x0) in the type of `x`, all of one shape; `previous_x0=None` is a first-order step.

    The arithmetic is float32 for half types: rounding in a half type would add up over the steps.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    uncond, cond, current = eps_uncond.to(compute), eps_cond.to(compute), x.to(compute)
    eps = uncond + step.guidance * (cond - uncond)
    x0 = (current - step.sigma * eps) / step.alpha
    following = step.keep * current + step.add * x0
    if previous_x0 is not None:
        following = following + step.history * previous_x0.to(compute)
    return following.to(x.dtype), x0.to(x.dtype)
