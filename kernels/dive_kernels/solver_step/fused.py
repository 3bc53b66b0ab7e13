"""`solver_step` as one Triton kernel: one read of each input, one write of each output, float32 arithmetic.

Importing this file imports Triton; `api.py` does so only when the kernel is wanted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dive_kernels.solver_step.coefficients import StepCoefficients

BLOCK = 1024  # elements a program; the op is bound by memory, so its tile hardly matters


@triton.jit
def solver_step_kernel(
    eps_uncond_ptr,
    eps_cond_ptr,
    x_ptr,
    previous_ptr,
    next_ptr,
    x0_ptr,
    count,
    guidance,
    inverse_alpha,
    sigma,
    keep,
    add,
    history,
    HAS_PREVIOUS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # 64 bits: a large batch must not wrap
    inside = offsets < count
    uncond = tl.load(eps_uncond_ptr + offsets, mask=inside).to(tl.float32)
    cond = tl.load(eps_cond_ptr + offsets, mask=inside).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=inside).to(tl.float32)
    eps = uncond + guidance * (cond - uncond)
    x0 = (x - sigma * eps) * inverse_alpha
    following = keep * x + add * x0
    if HAS_PREVIOUS:
        following += history * tl.load(previous_ptr + offsets, mask=inside).to(tl.float32)
    tl.store(next_ptr + offsets, following.to(next_ptr.dtype.element_ty), mask=inside)
    tl.store(x0_ptr + offsets, x0.to(x0_ptr.dtype.element_ty), mask=inside)


def solver_step_fused(
    eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, previous_x0: Tensor | None, step: StepCoefficients
) -> tuple[Tensor, Tensor]:
    """Launches the kernel; the caller has checked shapes, types and devices (see `api.why_not_fused`)."""
    following, x0 = torch.empty_like(x), torch.empty_like(x)
    count = x.numel()
    if count == 0:
        return following, x0
    solver_step_kernel[(triton.cdiv(count, BLOCK),)](
        eps_uncond,
        eps_cond,
        x,
        x if previous_x0 is None else previous_x0,  # a placeholder: not read without HAS_PREVIOUS
        following,
        x0,
        count,
        step.guidance,
        1.0 / step.alpha,
        step.sigma,
        step.keep,
        step.add,
        step.history,
        HAS_PREVIOUS=previous_x0 is not None,
        BLOCK=BLOCK,
        enable_fp_fusion=True,  # Triton 3.10 flips the default
    )
    return following, x0
