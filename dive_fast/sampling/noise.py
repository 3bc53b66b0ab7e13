"""Noise that depends on a row's seed and on nothing else, and the noisy start from a photo's latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dive_fast.sampling.schedule import Schedule
from dive_fast.types import InputError

SEED_LIMIT = 2**64


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise, float32 [B, C, h, w] on the CPU, for `shape` (C, h, w) and B seeds in [0, 2**64).

    Every row has its own CPU generator, so a row is the same alone, in any batch, in any order and on any machine;
    a generator of an accelerator would give other numbers than the CPU's. Raises `InputError` for a seed out of range.
    """
    bad = [seed for seed in seeds if not 0 <= seed < SEED_LIMIT]
    if bad:
        raise InputError(f"noise: {len(bad)} seed(s) outside 0..2**64-1, first {bad[0]}; plan the run again")
    rows = [torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty((0, *shape))


def add_noise(latents: Tensor, noise: Tensor, schedule: Schedule, start: int) -> Tensor:
    """Clean latents brought to the noise level of step `start`; [B, C, h, w] in and out, float32.

    The result is what `dpmpp_2m(..., start=start)` starts from (photo-guided pairs).
    Raises `InputError` when `start` is no step of the schedule.
    """
    schedule.check_start(start)
    alpha, sigma = schedule.signal(start)
    return alpha * latents + sigma * noise
