"""Sampling settings: what is refused, guidance in an interval, and the named presets."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest

from dive_fast.sampling import PRESETS, SD15, Sampling, Schedule
from dive_fast.types import to_dict
from tests.support.refusals import refused

SCHEDULE = Schedule((900, 700, 500, 300, 100, 50), (14.0, 6.0, 3.0, 1.5, 0.5, 0.1, 0.0))


def test_an_interval_is_of_noise_levels_the_upper_end_included() -> None:
    assert SCHEDULE.within((0.5, 6.0)) == {700, 500, 300}
    assert SCHEDULE.within((0.0, 100.0)) == set(SCHEDULE.timesteps)


@pytest.mark.parametrize(
    ("given", "reasons"),
    [
        ({"steps": 0, "guidance": -1}, "steps .* got 0; guidance .* got -1"),
        ({"steps": 2.5}, "steps .* got 2.5"),
        ({"steps": True}, "steps .* got True"),
        ({"guidance": math.nan}, "guidance .* got nan"),
        ({"guidance_interval": (5.0, 0.5)}, "guidance_interval .* got"),
        ({"guidance_interval": (-1, 0.5)}, "guidance_interval .* got"),
        ({"guidance_interval": (1,)}, "guidance_interval .* got"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], reasons: str) -> None:
    refused(reasons, Sampling, **given)


def test_rows_images_and_guided_steps_by_hand() -> None:
    plain, none, some = Sampling(6), Sampling(6, 1.0, (0.1, 3.0)), Sampling(6, 3.0, (0.1, 3.0))
    assert [(s.images(7), s.rows(3)) for s in (plain, none, some)] == [(3, 6), (7, 3), (3, 6)]
    assert plain.guided_timesteps(SCHEDULE) == set(SCHEDULE.timesteps)
    assert none.guided_timesteps(SCHEDULE) == set() and some.guided_timesteps(SCHEDULE) == {500, 300, 100}
    assert [s.describe() for s in (plain, none, some)] == [
        "6 steps, guidance 2",
        "6 steps, no guidance",
        "6 steps, guidance 3 at sigma 0.1 to 3",
    ]


def test_equal_settings_are_equal_in_json() -> None:
    assert to_dict(Sampling(4, 2, (1, 5))) == {"steps": 4, "guidance": 2.0, "guidance_interval": (1.0, 5.0)}
    assert type(Sampling(4, 2).guidance) is float


def test_presets() -> None:
    assert {name: (preset.name, preset.steps) for name, preset in PRESETS.items()} == {
        "exact": ("exact", 50),
        "fast": ("fast", 15),
        "turbo": ("turbo", None),
    }
    own = Sampling(20, 7.5, (0.5, 2.0))
    assert PRESETS["fast"].applied_to(own) == Sampling(15, 7.5, (0.5, 2.0))  # steps alone: guidance is the model's
    assert PRESETS["turbo"].applied_to(own) == own  # a student's


def test_stable_diffusion_is_sampled_as_dive_s_code_does() -> None:
    assert (SD15.steps, SD15.guidance, SD15.guidance_interval) == (50, 7.5, None)


def test_settings_load_no_torch() -> None:
    code = "import sys, dive_fast.sampling.config as c; c.Sampling(); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
