"""Schedules against diffusers' DPMSolverMultistepScheduler."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from dive_fast.sampling import Schedule
from dive_fast.sampling.schedule import check_scheduler
from dive_fast.types import InputError
from tests.support.refusals import refused
from tests.support.sampling import diffusers_scheduler
from tests.support.tiny import SCHEDULER_CONFIG


def assert_equal(config: dict[str, Any], steps: int) -> None:
    ours, theirs = Schedule.from_config(config, steps), diffusers_scheduler(config, steps)
    assert list(ours.timesteps) == theirs.timesteps.tolist()
    assert list(ours.sigmas) == theirs.sigmas.tolist()
    alphas, noise = theirs._sigma_to_alpha_sigma_t(theirs.sigmas.double())
    signal = [level for i in range(steps + 1) for level in ours.signal(i)]
    assert signal == pytest.approx(torch.stack([alphas, noise], 1).flatten().tolist(), rel=1e-15)


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        *((SCHEDULER_CONFIG, steps) for steps in (1, 2, 3, 7, 10, 20, 50, 333)),
        ({}, 12),  # the defaults of diffusers
        # a name that diffusers reads as this solver
        ({**SCHEDULER_CONFIG, "solver_type": "bh2", "_class_name": "UniPCMultistepScheduler"}, 10),
        *(
            ({**SCHEDULER_CONFIG, "timestep_spacing": spacing, "beta_schedule": betas}, steps)
            for spacing in ("linspace", "leading", "trailing")
            for betas in ("linear", "scaled_linear")
            for steps in (1, 2, 3, 20, 48, 50, 96)
        ),
    ],
)
def test_equals_diffusers(config: dict[str, Any], steps: int) -> None:
    assert_equal(config, steps)


def test_defaults_that_another_class_filled_in_are_not_taken_for_choices() -> None:
    from diffusers import PNDMScheduler

    live = dict(PNDMScheduler.from_config(SCHEDULER_CONFIG).config)
    assert live["timestep_spacing"] == "leading"  # PNDM's own default, which the file does not hold
    assert_equal(live, 10)
    assert Schedule.from_config(live, 10).timesteps[0] == 999


def test_every_reason_is_named_at_once() -> None:
    config = {**SCHEDULER_CONFIG, "rescale_betas_zero_snr": True, "prediction_type": "sample", "beta_schedule": 3}
    parts = ("rescale_betas_zero_snr True", "prediction_type 'sample'", "beta_schedule 3", "got 0")
    refused(parts, Schedule.from_config, config, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"timestep_spacing": "leadin"},
        {"trained_betas": [0.1, 0.2]},
        {"rescale_betas_zero_snr": True},
        {"variance_type": "learned_range"},
        {"timestep_type": "continuous"},
        {"use_flow_sigmas": True},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "EDMEulerScheduler"},
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": "1000"},
        {"num_train_timesteps": 1000.0},
        {"beta_start": None},
        {"beta_start": 0.5, "beta_end": 0.1},
        {"beta_end": math.nan},
        {"steps_offset": True},
    ],
    ids=str,
)
def test_refuses_what_it_does_not_reproduce(change: dict[str, Any]) -> None:
    refused(next(iter(change)).strip("_").split("_")[0], Schedule.from_config, {**SCHEDULER_CONFIG, **change}, 10)


@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 1000), ("leading", 999), ("trailing", 1001)])
def test_refuses_more_steps_than_there_are_timesteps(spacing: str, steps: int) -> None:
    config = {**SCHEDULER_CONFIG, "timestep_spacing": spacing}
    refused(f"{steps} steps do not fit", Schedule.from_config, config, steps)


@pytest.mark.parametrize("steps", [True, 2.0, "20", None])
def test_refuses_a_number_of_steps_that_is_none(steps: Any) -> None:
    refused("number of steps", Schedule.from_config, SCHEDULER_CONFIG, steps)


SAMPLERS = [
    {"use_karras_sigmas": True},
    {"algorithm_type": "sde-dpmsolver++", "_class_name": "DPMSolverMultistepScheduler"},
    {"solver_order": 3},
    {"thresholding": True},
    {"final_sigmas_type": "sigma_min"},
    {"lambda_min_clipped": -5.1},
    {"use_exponential_sigmas": True, "_class_name": "EulerDiscreteScheduler"},
]


@pytest.mark.parametrize("change", SAMPLERS, ids=str)
def test_settings_of_another_sampler_are_ignored_with_a_note(change: dict[str, Any]) -> None:
    """The model and its noise levels are the same: so is the schedule."""
    config = {**SCHEDULER_CONFIG, **change}
    with pytest.warns(UserWarning, match=f"x.json: .*ignored: {next(iter(change))} "):
        assert check_scheduler(config, "x.json") == config
    assert Schedule.from_config(config, 10) == Schedule.from_config(SCHEDULER_CONFIG, 10)


@pytest.mark.filterwarnings("error")
def test_what_diffusers_writes_for_this_very_solver_needs_no_note() -> None:
    from diffusers import DPMSolverMultistepScheduler

    saved = json.loads(DPMSolverMultistepScheduler.from_config(SCHEDULER_CONFIG).to_json_string())
    assert saved.pop("lambda_min_clipped") == -math.inf  # which no other JSON reader knows
    assert check_scheduler({**saved, "lambda_min_clipped": -math.inf}, "x.json") == saved
    refused("x.json.* list", check_scheduler, [], "x.json")
    refused("x.json.* beta_end", check_scheduler, {**saved, "beta_end": math.inf}, "x.json")


def test_a_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(InputError, match="x.json.* not finite") as caught:
        check_scheduler({**SCHEDULER_CONFIG, "x" * 5000: math.nan}, "x.json")
    assert len(str(caught.value)) < 250
