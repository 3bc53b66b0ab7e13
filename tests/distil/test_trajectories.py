"""The teacher's trajectories against diffusers' solver, and their blocks on disk."""

from dataclasses import replace

import pytest
import torch

from dive_fast.distil.trajectories import Teacher, few_step_scheduler
from dive_fast.models import load_bundle
from dive_fast.sampling import Schedule
from tests.support.distilling import CONFIG
from tests.support.refusals import refused
from tests.support.sampling import diffusers_scheduler
from tests.support.tiny import LATENT_SHAPE, SCHEDULER_CONFIG

GUIDANCE = 3.0


@pytest.fixture(scope="module")
def teacher(tiny_fused):
    bundle = load_bundle(tiny_fused)
    return Teacher(bundle, CONFIG, GUIDANCE, [one.pid for one in bundle.prompts.identities])


def test_states_are_those_of_diffusers_guided_solver_at_the_students_times(teacher):
    bundle, positions = teacher.sampler.bundle, [3, 11]
    states = teacher.solve(positions)["states"]
    assert states.shape == (2, CONFIG.student_steps, *LATENT_SHAPE) and states.dtype == torch.float16
    scheduler = diffusers_scheduler({**SCHEDULER_CONFIG, "timestep_spacing": "trailing"}, CONFIG.teacher_steps)
    ids = [bundle.prompts.prompt(*key) for key in teacher.prompts(positions)]
    tokens = bundle.tokenizer(["", "", *ids], padding="max_length", return_tensors="pt").input_ids
    latents, times = teacher.noise(positions), list(scheduler.timesteps)
    with torch.no_grad():
        text = bundle.text_encoder(tokens).last_hidden_state
        for number, timestep in enumerate(times, start=1):
            without, prompted = bundle.unet(latents.repeat(2, 1, 1, 1), timestep, text).sample.chunk(2)
            latents = scheduler.step(without + GUIDANCE * (prompted - without), timestep, latents).prev_sample
            if number % 2 == 0:
                kept = states[:, number // 2 - 1].float()
                torch.testing.assert_close(
                    kept, latents, rtol=2**-10, atol=1e-3
                )  # half a unit of float16, and rounding
    assert int(times[2]) == Schedule.from_config(few_step_scheduler(SCHEDULER_CONFIG, 1), 2).timesteps[1]


@pytest.mark.parametrize(("few", "many"), [(1, 7), (2, 16), (4, 16), (8, 16), (4, 20)])
def test_the_teacher_passes_through_the_students_times(few, many):
    scheduler = few_step_scheduler(SCHEDULER_CONFIG, 1)
    ours, theirs = (Schedule.from_config(scheduler, steps) for steps in (few, many))
    assert set(ours.sigmas) <= set(theirs.sigmas)


def test_each_round_has_every_prompt_once(teacher):
    count = len(teacher.keys)
    assert count == 9
    for first in (0, count):
        assert sorted(teacher.prompts(range(first, first + count))) == sorted(teacher.keys)
    assert teacher.prompts(range(count)) != teacher.prompts(range(count, 2 * count))


def test_a_lost_block_comes_back_and_others_are_kept(teacher, tmp_path):
    whole = teacher.blocks.kept(tmp_path, progress=False)
    assert len(whole["states"]) == CONFIG.trajectories + 32
    first, second, _ = sorted(tmp_path.iterdir())
    lost, kept = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    again = teacher.blocks.kept(tmp_path, progress=False)
    assert torch.equal(whole["states"], again["states"])
    assert second.read_bytes() == lost and first.stat().st_mtime_ns == kept


def test_blocks_of_another_guidance_are_refused(teacher, tiny_fused, tmp_path):
    teacher.blocks.kept(tmp_path, progress=False)
    other = Teacher(load_bundle(tiny_fused), CONFIG, GUIDANCE + 1, ["0001", "0002", "0003"])
    sorted(tmp_path.iterdir())[0].unlink()
    for call in (lambda: other.blocks.kept(tmp_path, progress=False), lambda: other.blocks.missing(tmp_path)):
        refused("trajectories-00001", call)
    assert len(list(tmp_path.iterdir())) == 2  # it made none


def test_teacher_steps_are_a_multiple_of_the_students():
    refused(("--teacher-steps 5", "--student-steps 2"), replace, CONFIG, teacher_steps=5)
