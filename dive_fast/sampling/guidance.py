"""Classifier-free guidance as a wrapper: one engine call for both halves.

"eps" is whatever the model predicts, the noise or v: guidance of either is the same, as v is linear in the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container

import torch
from torch import Tensor

from dive_fast.sampling.solver import Eps
from dive_fast.types import InputError

EpsRows = Callable[[Tensor, int, Tensor], Tensor]


def repeated(latents: Tensor, rows: int) -> Tensor:
    """Latents [B, ...] once for each of `rows` = k x B rows, as `guided` counts them; [B, ...] itself for k = 1."""
    times = rows // len(latents)
    return latents if times == 1 else latents.repeat(times, *[1] * (latents.ndim - 1))


def guided(
    eps_rows: EpsRows,
    prompt_index: Tensor,
    null_index: int | None,
    scale: float,
    at: Container[int] | None = None,
) -> Eps:
    """Returns the `eps(latents, timestep)` for B latents whose prompts are `prompt_index`, int64 [B].

    It calls `eps_rows(latents [B, C, h, w], timestep, index [R]) -> [R, C, h, w]` once a step with R = 2B rows, those of
    the empty prompt (`null_index`) first. Row r belongs to latent r % B (`repeated`), so an engine may compute once what
    both halves share. At scale 1.0, and at timesteps not in `at` (an interval, arXiv 2404.07724; by default all are), R = B.
    Raises `InputError` for a scale that is not finite, or other than 1.0 without a `null_index`.
    """
    if not math.isfinite(scale):
        raise InputError(f"guidance: the scale must be a finite number, got {scale}")
    if scale == 1.0:
        return lambda latents, timestep: eps_rows(latents, timestep, prompt_index)
    if null_index is None:
        raise InputError(f"guidance: scale {scale} needs the empty prompt; encode it too, or use scale 1.0")
    index = torch.cat([torch.full_like(prompt_index, null_index), prompt_index])

    def eps(latents: Tensor, timestep: int) -> Tensor:
        if at is not None and timestep not in at:
            return eps_rows(latents, timestep, prompt_index)
        without, with_prompt = eps_rows(latents, timestep, index).chunk(2)
        return without + scale * (with_prompt - without)

    return eps
