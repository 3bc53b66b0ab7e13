"""Guidance in an interval, and the named presets."""

from __future__ import annotations

import torch

from dive_fast.sampling import PRESETS, Schedule, guided
from tests.support.sampling import SHAPE, Recorder

SCHEDULE = Schedule((900, 700, 500, 300, 100, 50), (14.0, 6.0, 3.0, 1.5, 0.5, 0.1, 0.0))


def test_an_interval_is_of_noise_levels_the_upper_end_included() -> None:
    assert SCHEDULE.within((0.5, 6.0)) == {700, 500, 300}
    assert SCHEDULE.within((0.0, 100.0)) == set(SCHEDULE.timesteps)


def test_outside_its_interval_guidance_runs_the_prompts_alone() -> None:
    rows = Recorder()
    eps = guided(rows, torch.tensor([3, 5]), null_index=1, scale=3.0, at=frozenset({500}))
    inside, outside = eps(torch.zeros(2, *SHAPE), 500), eps(torch.zeros(2, *SHAPE), 300)
    assert rows.calls == [(2, 500, [1, 1, 3, 5]), (2, 300, [3, 5])]
    assert inside[:, 0, 0, 0].tolist() == [1 + 3 * 2, 1 + 3 * 4] and outside[:, 0, 0, 0].tolist() == [3, 5]


def test_every_preset_fits_the_usual_schedules() -> None:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for preset in PRESETS.values():
        schedule = Schedule.from_config(config, preset.steps)
        if preset.interval is not None:
            assert 0 < len(schedule.within(preset.interval)) < preset.steps
