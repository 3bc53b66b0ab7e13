"""The solver against diffusers' scheduler loop, and against an ODE whose solution is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_fast.sampling import Schedule, add_noise, dpmpp_2m
from dive_fast.types import DiveError
from tests.support.refusals import refused
from tests.support.sampling import diffusers_scheduler
from tests.support.tiny import SCHEDULER_CONFIG

SHAPE = (3, 4, 8, 4)


def smooth_eps(latents: Tensor, timestep: int) -> Tensor:
    """Some network: not linear, and different at every timestep and place."""
    place = torch.linspace(-1, 1, latents[0].numel(), dtype=latents.dtype).reshape(latents.shape[1:])
    return torch.tanh(latents * (0.5 + timestep / 2000) + place)


def diffusers_loop(latents: Tensor, steps: int, start: int = 0, config: dict[str, Any] = SCHEDULER_CONFIG) -> Tensor:
    scheduler = diffusers_scheduler(config, steps)
    scheduler.set_begin_index(start)
    for timestep in scheduler.timesteps[start:]:
        latents = scheduler.step(smooth_eps(latents, int(timestep)), timestep, latents).prev_sample
    return latents


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    roundings = 16 * torch.finfo(torch.float32).eps  # of the largest value, over up to 50 steps; seen: 6
    torch.testing.assert_close(ours, theirs, rtol=0, atol=roundings * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        *(({}, steps) for steps in (1, 2, 3, 10, 20, 50)),
        *(({"timestep_spacing": spacing}, 12) for spacing in ("leading", "trailing")),
        *(({"prediction_type": "v_prediction"}, steps) for steps in (1, 2, 7, 25)),
        *(({"solver_order": 1, "timestep_spacing": "trailing"}, steps) for steps in (1, 2, 4, 8)),
    ],
)
def test_equals_the_loop_of_diffusers(change: dict[str, Any], steps: int) -> None:
    config = {**SCHEDULER_CONFIG, **change}
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(steps))
    ours = dpmpp_2m(smooth_eps, noise, Schedule.from_config(config, steps))
    assert_same(ours, diffusers_loop(noise, steps, config=config))
    if "prediction_type" in change:
        assert (ours - dpmpp_2m(smooth_eps, noise, Schedule.from_config(SCHEDULER_CONFIG, steps))).abs().max() > 0.1


@pytest.mark.parametrize(("steps", "start"), [(20, 8), (20, 19), (10, 1), (3, 2), (2, 0)])
def test_equals_diffusers_from_a_later_step(steps: int, start: int) -> None:
    generator = torch.Generator().manual_seed(start)
    photo, noise = torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)
    schedule = Schedule.from_config(SCHEDULER_CONFIG, steps)
    noisy = add_noise(photo, noise, schedule, start)

    scheduler = diffusers_scheduler(SCHEDULER_CONFIG, steps)
    scheduler.set_begin_index(start)
    theirs = scheduler.add_noise(photo, noise, scheduler.timesteps[start : start + 1])
    torch.testing.assert_close(noisy, theirs, rtol=1e-6, atol=1e-6)
    assert_same(dpmpp_2m(smooth_eps, noisy, schedule, start), diffusers_loop(theirs, steps, start))


def test_is_of_second_order_on_an_ode_with_a_known_solution() -> None:
    """For data N(0, s^2) the best eps is sigma x / (alpha^2 s^2 + sigma^2), and x stays at its quantile exactly."""
    spread = 0.7
    noise = torch.tensor([-2.0, -0.5, 0.3, 1.7]).reshape(1, 1, 2, 2)

    def error(steps: int) -> float:
        schedule = Schedule.from_config(SCHEDULER_CONFIG, steps)
        deviations = [math.hypot(alpha * spread, sigma) for alpha, sigma in map(schedule.signal, range(steps + 1))]
        errors = []

        def eps(latents: Tensor, timestep: int) -> Tensor:
            index = schedule.timesteps.index(timestep)
            return latents * (schedule.signal(index)[1] / deviations[index] ** 2)

        def compare(index: int, latents: Tensor) -> None:
            errors.append(float((latents - noise * deviations[index + 1] / deviations[0]).abs().max()))

        dpmpp_2m(eps, noise, schedule, on_step=compare)
        return errors[steps // 2 - 1]  # in the middle: towards sigma 0 the steps in log sigma do not shrink

    assert error(100) < 1e-4
    assert error(50) / error(100) > 3  # a first-order solver halves its error, a second-order one quarters it


def test_reports_every_step() -> None:
    seen: list[int] = []
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 5)
    dpmpp_2m(smooth_eps, torch.randn(SHAPE), schedule, 2, lambda index, latents: seen.append(index))
    assert seen == [2, 3, 4]


def test_half_precision_input_is_solved_in_float32() -> None:
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 3)
    noise = torch.randn(SHAPE).half()
    assert torch.equal(dpmpp_2m(smooth_eps, noise, schedule), dpmpp_2m(smooth_eps, noise.float(), schedule))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_names_the_step_and_the_row_that_left_the_finite_numbers(value: float) -> None:
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 10)

    def broken(latents: Tensor, timestep: int) -> Tensor:
        out = smooth_eps(latents, timestep)
        if timestep == schedule.timesteps[4]:
            out[1, 0, 0, 0] = value
        return out

    message = rf"row\(s\) 1 .* after step 4 \(timestep {schedule.timesteps[4]}, of 10"
    refused(message, dpmpp_2m, broken, torch.randn(SHAPE), schedule, error=DiveError)


@pytest.mark.parametrize("start", [-1, 10, 11])
def test_refuses_a_start_that_is_no_step(start: int) -> None:
    schedule = Schedule.from_config(SCHEDULER_CONFIG, 10)
    refused(f"start step {start} is not in 0..9", dpmpp_2m, smooth_eps, torch.randn(SHAPE), schedule, start)
    refused(f"start step {start}", add_noise, torch.zeros(SHAPE), torch.zeros(SHAPE), schedule, start)
