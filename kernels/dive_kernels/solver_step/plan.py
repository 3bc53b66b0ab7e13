"""How the fused kernel is called: one read of each input, one write of each output."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.launch import Launch
from dive_kernels.solver_step.coefficients import StepCoefficients

BLOCK = 1024  # elements a program; the op is bound by memory, so its tile hardly matters


def plan(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: StepCoefficients
) -> tuple[Launch, tuple[Tensor, Tensor]]:
    """Returns the launch, and the outputs (next x, x0) that it writes."""
    following, x0 = torch.empty_like(x), torch.empty_like(x)
    launch = Launch(
        kernel="dive_kernels.solver_step.fused:solver_step_kernel",
        grid=(-(-x.numel() // BLOCK),),
        arguments={
            "eps_uncond_ptr": eps_uncond,
            "eps_cond_ptr": eps_cond,
            "x_ptr": x,
            "previous_ptr": x if previous_x0 is None else previous_x0,  # a placeholder: not read without HAS_PREVIOUS
            "next_ptr": following,
            "x0_ptr": x0,
            "count": x.numel(),
            "guidance": float(step.guidance),
            "inverse_alpha": 1.0 / step.alpha,
            "sigma": float(step.sigma),
            "keep": float(step.keep),
            "add": float(step.add),
            "history": float(step.history),
        },
        constants={"HAS_PREVIOUS": previous_x0 is not None, "BLOCK": BLOCK},
    )
    return launch, (following, x0)
