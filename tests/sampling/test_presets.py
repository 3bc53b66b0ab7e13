"""Guidance in an interval, and at which steps the whole UNet runs."""

from __future__ import annotations

import pytest
import torch

from dive_fast.sampling import PRESETS, Course, Schedule, guided, whole_steps
from tests.support.sampling import SHAPE, Recorder

SCHEDULE = Schedule((900, 700, 500, 300, 100, 50), (14.0, 6.0, 3.0, 1.5, 0.5, 0.1, 0.0))
ALL = frozenset(SCHEDULE.timesteps)


def test_an_interval_is_of_noise_levels_the_upper_end_included() -> None:
    assert SCHEDULE.within((0.5, 6.0)) == {700, 500, 300}
    assert SCHEDULE.within((0.0, 100.0)) == set(SCHEDULE.timesteps)


def test_outside_its_interval_guidance_runs_the_prompts_alone() -> None:
    rows = Recorder()
    eps = guided(rows, torch.tensor([3, 5]), null_index=1, scale=3.0, at=frozenset({500}))
    inside, outside = eps(torch.zeros(2, *SHAPE), 500), eps(torch.zeros(2, *SHAPE), 300)
    assert rows.calls == [(2, 500, [1, 1, 3, 5]), (2, 300, [3, 5])]
    assert inside[:, 0, 0, 0].tolist() == [1 + 3 * 2, 1 + 3 * 4] and outside[:, 0, 0, 0].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("start", "reuse", "at", "whole"),
    [
        (0, 1, ALL, {900, 700, 500, 300, 100, 50}),
        (0, 2, ALL, {900, 500, 100}),
        (1, 3, ALL, {700, 100}),
        (0, 3, frozenset({500, 300, 100}), {900, 500, 50}),  # guidance sets in at 500 and ends before 50
        (0, 2, frozenset[int](), {900, 500, 100}),
    ],
)
def test_whole_steps_are_counted_anew_where_rows_change(
    start: int, reuse: int, at: frozenset[int], whole: set[int]
) -> None:
    assert whole_steps(SCHEDULE, start, reuse, at) == whole


def test_a_course_counts_its_calls() -> None:
    course = Course.of(SCHEDULE, 2.0, (0.1, 3.0), reuse=3)
    assert course.guided == {500, 300, 100} and course.whole == {900, 500, 50}
    assert course.calls() == {(False, True): 2, (False, False): 1, (True, True): 1, (True, False): 2}
    assert Course.of(SCHEDULE, 2.0, None, reuse=1, start=4).calls() == {(True, True): 2}
    assert Course.of(SCHEDULE, 1.0, (0.1, 3.0), reuse=2).calls() == {(False, True): 3, (False, False): 3}


def test_every_preset_fits_the_usual_schedules() -> None:
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for preset in PRESETS.values():
        schedule = Schedule.from_config(config, preset.steps)
        if preset.interval is not None:
            assert 0 < len(schedule.within(preset.interval)) < preset.steps
        assert (preset.reuse > 1) == (preset.reuse_depth > 0)
