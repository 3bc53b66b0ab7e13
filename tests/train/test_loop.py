"""Batches, rates, averages and states: what lets a stopped training go on as if it had not been stopped."""

import json
import math

import numpy as np
import pytest
import torch

from dive_fast.train.loop import (
    LossLog,
    MovingAverage,
    Stage,
    batch_indices,
    check_finite,
    cosine_lr,
    load_state,
    run_stage,
    save_state,
)
from dive_fast.types import DiveError, InputError


def test_every_epoch_sees_every_item_once_even_across_batches():
    seen = np.concatenate([batch_indices(10, 4, step, seed=3) for step in range(5)])  # two epochs of ten
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_a_batch_depends_on_its_step_and_not_on_the_steps_before():
    assert list(batch_indices(7, 3, 11, seed=1)) == list(batch_indices(7, 3, 11, seed=1))
    assert list(batch_indices(50, 8, 2, seed=1)) != list(batch_indices(50, 8, 2, seed=2))


def test_a_batch_larger_than_the_set_goes_around():
    assert sorted(batch_indices(3, 6, 0, seed=0)) == [0, 0, 1, 1, 2, 2]


def test_cosine_rate_warms_up_peaks_and_ends_at_its_floor():
    rates = [cosine_lr(step, 100, 2.0, warmup=10, floor=0.01) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert max(rates) == pytest.approx(2.0)
    assert cosine_lr(100, 100, 2.0, warmup=10, floor=0.01) == pytest.approx(0.02)
    halfway = cosine_lr(55, 100, 2.0, warmup=10, floor=0.0)
    assert halfway == pytest.approx(1.0)


def test_moving_average_follows_its_formula():
    parameter = torch.nn.Parameter(torch.zeros(1))
    average = MovingAverage([parameter], decay=0.9)
    expected = 0.0
    for step, value in enumerate((1.0, 2.0, 3.0)):
        parameter.data.fill_(value)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.shadow[0].item() == pytest.approx(expected, rel=1e-6)
    average.copy_to_parameters()
    assert parameter.item() == pytest.approx(expected, rel=1e-6)


def test_state_round_trip_and_a_torn_file(tmp_path):
    path = tmp_path / "run.state"
    save_state(path, {"step": 7, "tensor": torch.arange(3.0)})
    state = load_state(path)
    assert state["step"] == 7
    assert torch.equal(state["tensor"], torch.arange(3.0))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="delete it to start this stage anew"):
        load_state(path)


def test_a_resumed_log_drops_what_will_be_logged_again_and_torn_lines(tmp_path):
    path = tmp_path / "loss.jsonl"
    path.write_text('{"step": 0, "loss": 1}\n{"step": 10, "loss": 2}\n{"step": 20, "loss": 3}\n{"step": 30, "lo')
    log = LossLog(path, resume_step=20)
    log.add(20, loss=4.0)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 10, 20]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(bad):
    with pytest.raises(DiveError, match="step 12"):
        check_finite(bad, 12, "personalize")


def _quadratic_stage(work, steps, identity="a"):
    """A stage that pulls two parameters to 1; the second at a tenth of the rate."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [
        {"params": parameters[:1], "weight_decay": 0.0},
        {"params": parameters[1:], "weight_decay": 0.0, "lr_scale": 0.1},
    ]
    stage = Stage("toy", work, steps, 0.1, warmup=1, save_every=3, average=0.0, identity=identity, progress=False)

    def loss_at(step):
        return sum((p - 1).square().sum() for p in parameters), {"step_again": float(step)}

    return stage, groups, loss_at, parameters


def test_a_stage_resumes_to_the_very_numbers_of_an_undisturbed_one(tmp_path):
    stage, groups, loss_at, whole = _quadratic_stage(tmp_path / "whole", 8)
    run_stage(stage, groups, loss_at)
    stage, groups, loss_at, _ = _quadratic_stage(tmp_path / "cut", 8)

    def stop(step):
        if step == 5:
            raise KeyboardInterrupt
        return loss_at(step)

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage, groups, stop)
    stage, groups, loss_at, resumed = _quadratic_stage(tmp_path / "cut", 8)
    run_stage(stage, groups, loss_at)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert whole[0][0] > 3 * whole[1][0] > 0  # the group's share of the rate


def test_a_state_of_other_data_is_refused(tmp_path):
    stage, groups, loss_at, _ = _quadratic_stage(tmp_path, 3)
    run_stage(stage, groups, loss_at)
    stage, groups, loss_at, _ = _quadratic_stage(tmp_path, 3, identity="b")
    with pytest.raises(InputError, match="other data or settings"):
        run_stage(stage, groups, loss_at)


def test_clipping_touches_only_what_it_is_told_to(tmp_path):
    stage, groups, loss_at, parameters = _quadratic_stage(tmp_path, 1)
    run_stage(stage, groups, lambda step: (1e6 * loss_at(step)[0], {}), clip=parameters[1:])
    assert parameters[0].grad.norm() > 1e6
    assert parameters[1].grad.norm() <= 1.0 + 1e-5
