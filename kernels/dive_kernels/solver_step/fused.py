"""`solver_step` as one Triton kernel, float32 arithmetic. Importing this file imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


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
