"""DPM-Solver++ (2M, midpoint, first order at both ends; or of first order) over any `eps(latents, timestep)`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dive_fast.sampling.schedule import Schedule
from dive_fast.types import DiveError

Eps = Callable[[Tensor, int], Tensor]
OnStep = Callable[[int, Tensor], None]


def dpmpp_2m(eps: Eps, latents: Tensor, schedule: Schedule, start: int = 0, on_step: OnStep | None = None) -> Tensor:
    """Solves from step `start` to the end; returns clean latents, float32 [B, C, h, w], on the latents' device.

    `eps(latents, timestep)` returns the model's prediction, float32 of the latents' shape: the noise, or v if the schedule
    says so. `latents` must be at the noise level of `start`: pure noise for 0, else `add_noise`'s. `on_step(index, latents)`
    runs after each step. A schedule of order 1 takes DDIM's steps. Equals diffusers' scheduler loop to float32 rounding.
    Raises `DiveError` naming the first step whose latents are not finite, and their rows; `InputError` when `start` is no
    step.
    """
    schedule.check_start(start)
    latents = latents.float()
    previous: Tensor | None = None
    finite: list[Tensor] = []
    for index in range(start, schedule.steps):
        clean = clean_latents(schedule, index, latents, eps(latents, schedule.timesteps[index]))
        first_order = previous is None or schedule.order == 1
        of_latents, of_clean, of_previous = coefficients(schedule, index, first_order)
        latents = of_latents * latents + of_clean * clean
        if previous is not None and of_previous:
            latents = latents + of_previous * previous
        previous = clean
        finite.append(latents.isfinite().flatten(1).all(dim=1))
        if on_step is not None:
            on_step(index, latents)
    _check_finite(torch.stack(finite), schedule, start)
    return latents


def clean_latents(schedule: Schedule, index: int, latents: Tensor, predicted: Tensor) -> Tensor:
    """The clean latents that a prediction at step `index` amounts to; all [B, C, h, w]."""
    alpha, sigma = schedule.signal(index)
    if schedule.prediction == "v_prediction":
        return alpha * latents - sigma * predicted
    return (latents - sigma * predicted) / alpha


def coefficients(schedule: Schedule, index: int, first_order: bool) -> tuple[float, float, float]:
    """Factors, in float64, of the latents, the clean and the previous clean latents, whose sum are the next latents.

    exp(-h) is the ratio of the sigmas, which stays finite at the final zero.
    """
    current, following = schedule.sigmas[index], schedule.sigmas[index + 1]
    (_, noise), (alpha_next, noise_next) = schedule.signal(index), schedule.signal(index + 1)
    clean = alpha_next * (1.0 - following / current)
    if first_order or following == 0.0:
        return noise_next / noise, clean, 0.0
    ratio = math.log(current / following) / math.log(schedule.sigmas[index - 1] / current)  # h / h of the step before
    return noise_next / noise, clean * (1.0 + 0.5 * ratio), -0.5 * clean * ratio


def _check_finite(finite: Tensor, schedule: Schedule, start: int) -> None:
    """`finite` is bool [steps, B]; checked once, after the loop, so no step waits for an accelerator."""
    if bool(finite.all()):
        return
    first = int((~finite).any(dim=1).nonzero()[0])
    rows = (~finite[first]).nonzero().flatten().tolist()
    index = start + first
    raise DiveError(
        f"sampling: latents of row(s) {', '.join(map(str, rows[:8]))} are not finite after step {index} "
        f"(timestep {schedule.timesteps[index]}, of {schedule.steps} steps); use float32, or a lower guidance scale"
    )
