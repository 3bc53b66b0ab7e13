"""Inputs of `solver_step` that its tests share."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.launch import Launch
from dive_kernels.solver_step import StepCoefficients
from dive_kernels.solver_step.plan import plan
from dive_kernels.solver_step.reference import solver_step_reference

STEP = StepCoefficients(guidance=7.5, alpha=0.61, sigma=0.79, keep=0.83, add=0.27, history=-0.11)
# Latents of the pocket and of Stable Diffusion's size, odd sizes, and lengths around the kernel's tile of 1024.
SHAPES = [(1, 4, 32, 16), (3, 4, 63, 31), (17, 4, 8, 4), (1,), (1023,), (1024,), (1025,)]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, second_order: bool, device: str) -> list[Tensor | None]:
    """eps_uncond, eps_cond, x and previous_x0 (None on a first-order step)."""
    generator = torch.Generator().manual_seed(len(shape) * 1000 + shape[-1])
    rows = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
    return [*rows[:3], rows[3] if second_order else None]


def exact(arguments: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The float64 oracle on the very same inputs."""
    doubled = [None if tensor is None else tensor.double() for tensor in arguments]
    return solver_step_reference(*doubled, STEP)


def example() -> Launch:
    x = torch.zeros(2, 1024)
    return plan(x.half(), x.half(), x, x, STEP)[0]
