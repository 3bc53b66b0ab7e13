"""Batches, rates, averages and states: what lets a stopped training go on as if it had not been stopped."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from dive_fast.train.loop import (
    Callback,
    LossLog,
    MovingAverage,
    PhaseConfig,
    TrainState,
    batch_indices,
    learning_rate,
    run_phase,
)
from dive_fast.train.parallel import my_rows
from dive_fast.training_state import read_state
from dive_fast.types import DiveError
from tests.support.refusals import refused


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
    rates = [learning_rate(step, 100, 2.0, warmup=10, floor=0.01) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert max(rates) == pytest.approx(2.0)
    assert learning_rate(100, 100, 2.0, warmup=10, floor=0.01) == pytest.approx(0.02)
    assert learning_rate(55, 100, 2.0, warmup=10, floor=0.0) == pytest.approx(1.0)


def test_constant_rate_warms_up_and_stays():
    rates = [learning_rate(step, 6, 2.0, warmup=4, scheduler="constant") for step in range(6)]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert {learning_rate(step, 6, 5e-5, warmup=0, scheduler="constant") for step in range(6)} == {5e-5}


def test_a_phase_trains_at_the_rate_of_its_scheduler(tmp_path):
    """AdamW's first step from 0, of gradient 1, is the rate; so is each later one, by its moments of equal gradients."""
    moved = {}
    for scheduler in ("cosine", "constant"):
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        phase = PhaseConfig("p", tmp_path, 3, 0.5, warmup=0, save_every=9, lr_scheduler=scheduler)
        train = TrainState(phase, [{"params": [weight], "weight_decay": 0.0}], lambda step, w=weight: (w.sum(), {}))
        moved[scheduler] = []
        for step in range(3):
            before = weight.item()
            train.step(step)
            moved[scheduler].append(before - weight.item())
    assert moved["constant"] == pytest.approx([0.5, 0.5, 0.5], rel=1e-6)
    cosine = [0.5 * (0.01 + 0.99 * share) for share in (1.0, 0.75, 0.25)]  # (1 + cos of 0, 60 and 120 degrees) / 2
    assert moved["cosine"] == pytest.approx(cosine, rel=1e-6)


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
    average.swap()
    assert parameter.item() == pytest.approx(expected, rel=1e-6)


def _equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_a_torn_state_is_named(tmp_path):
    path = tmp_path / "run.state"
    torch.save({"step": 7, "tensor": torch.arange(3.0)}, path)
    path.write_bytes(path.read_bytes()[:100])
    refused(r"run\.state", read_state, path)


def test_a_resumed_log_drops_what_will_be_logged_again_and_torn_lines(tmp_path):
    path = tmp_path / "loss.jsonl"
    path.write_text('{"step": 0, "loss": 1}\n{"step": 10, "loss": 2}\n{"step": 20, "loss": 3}\n{"step": 30, "lo')
    log = LossLog(path, resume_step=20)
    log.add(20, loss=4.0)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 10, 20]


def _quadratic_phase(work, steps, identity="a"):
    """A phase that pulls two parameters to 1; the second at a tenth of the rate."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [
        {"params": parameters[:1], "weight_decay": 0.0},
        {"params": parameters[1:], "weight_decay": 0.0, "lr_scale": 0.1},
    ]
    phase = PhaseConfig("toy", work, steps, 0.1, warmup=1, save_every=3, average=0.0, identity=identity, progress=False)

    def loss_at(step):
        return sum((p - 1).square().sum() for p in parameters), {"step_again": float(step)}

    return phase, groups, loss_at, parameters


def _run(made, stop=math.inf):
    """Runs a phase, interrupts it at step `stop`, and returns its parameters."""
    phase, groups, loss_at, parameters = made

    def stopped(step):
        if step == stop:
            raise KeyboardInterrupt
        return loss_at(step)

    with pytest.raises(KeyboardInterrupt) if stop < math.inf else nullcontext():
        run_phase(phase, groups, stopped)
    return parameters


def test_a_resumed_phase_equals_an_uninterrupted_one(tmp_path):
    whole = _run(_quadratic_phase(tmp_path / "whole", 8))
    _run(_quadratic_phase(tmp_path / "cut", 8), stop=5)
    resumed = _run(_quadratic_phase(tmp_path / "cut", 8))
    assert _equal(whole, resumed)
    assert whole[0][0] > 3 * whole[1][0] > 0  # by the group's lr_scale


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad):
    phase, groups, loss_at, _ = _quadratic_phase(tmp_path, 8)
    with pytest.raises(DiveError, match=f"toy.* {bad} at step 5"):  # save_every is 3
        run_phase(phase, groups, lambda step: (loss_at(step)[0] * (bad if step == 5 else 1), {}))


def test_a_state_of_other_data_is_refused(tmp_path):
    _run(_quadratic_phase(tmp_path, 3))
    refused(r"toy\.state", _run, _quadratic_phase(tmp_path, 3, identity="b"))


def test_fewer_steps_than_the_state_has_are_refused_and_it_stays(tmp_path):
    _run(_quadratic_phase(tmp_path, 3))
    before = (tmp_path / "toy.state").read_bytes()
    refused(("toy.state", "3 steps", "2 are asked for"), _run, _quadratic_phase(tmp_path, 2))
    assert (tmp_path / "toy.state").read_bytes() == before


def test_clipping_touches_only_what_it_is_told_to(tmp_path):
    phase, groups, loss_at, parameters = _quadratic_phase(tmp_path, 1)
    run_phase(phase, groups, lambda step: (1e6 * loss_at(step)[0], {}), clip=parameters[1:])
    assert parameters[0].grad.norm() > 1e6
    assert parameters[1].grad.norm() <= 1.0 + 1e-5


def _net_phase(work, overflow=None, **settings):
    """A small net in float32 that learns a function of batches of 8 rows; gradients of step `overflow` are not finite."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    defaults = {"steps": 9, "lr": 0.01, "warmup": 2, "save_every": 4, "progress": False}

    def loss_at(step):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))[my_rows(8)]
        with torch.autocast("cpu", enabled=False):
            error = (net(x) - x.sum(dim=1, keepdim=True).sin()).square().mean()
        return error * (1e38 if step == overflow else 1), {"error": error.detach()}

    groups = [{"params": list(net.parameters()), "weight_decay": 0.0}]
    return PhaseConfig("net", work, **{**defaults, **settings}), groups, loss_at, list(net.parameters())


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_teaches_what_the_whole_batch_teaches(tmp_path, parts):
    runs = {}
    for name, accumulate in (("whole", 1), ("parts", parts)):
        phase, groups, loss_at, parameters = _net_phase(tmp_path / name, accumulate=accumulate)
        train = TrainState(phase, groups, loss_at)
        loss, numbers = train.step(0)
        runs[name] = (loss, numbers["error"], [p.grad.clone() for p in parameters])
    (loss, error, whole), (loss_in_parts, error_in_parts, parts_) = runs["whole"], runs["parts"]
    torch.testing.assert_close(loss_in_parts, loss)
    torch.testing.assert_close(error_in_parts, error)
    torch.testing.assert_close(parts_, whole)


def test_without_an_average_the_last_values_stay(tmp_path):
    results = {}
    for average in (0.0, 0.9):
        phase, groups, loss_at, parameters = _net_phase(tmp_path / str(average), average=average)
        run_phase(phase, groups, loss_at)
        state = read_state(phase.state_path)
        results[average] = state["parameters"]
        assert len(state["average"]) == (len(parameters) if average else 0)
        assert _equal(parameters, state["parameters"]) == (not average)
    assert _equal(*results.values())


def test_watching_shows_the_average_and_changes_nothing(tmp_path):
    phase, groups, loss_at, alone = _net_phase(tmp_path / "alone", average=0.9)
    run_phase(phase, groups, loss_at)
    seen = {}
    for name in ("watched", "shorter"):
        phase, groups, loss_at, parameters = _net_phase(tmp_path / name, average=0.9)
        look = lambda done, p=parameters: seen.update({done: p[0].detach().clone()})  # noqa: E731
        if name == "watched":
            run_phase(phase, groups, loss_at, callback=Callback(3, look))
            assert _equal(parameters, alone)
        else:  # stopped at the first look, it would have left what was looked at; rates depend on the planned steps
            train = TrainState(phase, groups, loss_at)
            for step in range(3):
                train.step(step)
            train.swap_average()
            assert torch.equal(parameters[0], seen[3])
    assert sorted(seen) == [3, 6, 9]
    assert not torch.equal(seen[3], seen[6])


def test_loss_scaling_resumes_with_its_scale(tmp_path):
    fp16 = {"precision": "fp16", "save_every": 1, "overflow": 2}
    made = _net_phase(tmp_path / "whole", **fp16)
    whole = _run(made)
    assert read_state(made[0].state_path)["scaler"]["scale"] == 2.0**15
    _run(_net_phase(tmp_path / "cut", **fp16), stop=5)
    assert _equal(whole, _run(_net_phase(tmp_path / "cut", **fp16)))


def test_a_step_whose_gradients_overflow_is_skipped_and_halves_the_scale(tmp_path):
    phase, groups, loss_at, parameters = _net_phase(tmp_path, precision="fp16", average=0.0, overflow=0)
    train = TrainState(phase, groups, loss_at)
    before = [p.detach().clone() for p in parameters]
    loss, _ = train.step(0)
    assert torch.isfinite(loss)  # only the gradients overflow
    assert _equal(before, parameters)
    assert train.scaler.get_scale() == 2.0**15
    train.step(1)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_scaling_by_a_power_of_two_changes_no_gradient(tmp_path):
    gradients = []
    for precision in ("no", "fp16"):
        phase, groups, loss_at, parameters = _net_phase(tmp_path, precision=precision)
        TrainState(phase, groups, loss_at, clip=[]).step(0)
        gradients.append([p.grad for p in parameters])
    assert _equal(*gradients)


def test_a_tensorboard_log_resumes_without_doubles(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"steps": 45, "save_every": 5, "tensorboard": True}
    _run(_net_phase(tmp_path, **settings), stop=33)
    _run(_net_phase(tmp_path, **settings))
    events = EventAccumulator(str(tmp_path / "tensorboard" / "net"))
    events.Reload()
    logged = [json.loads(line) for line in (tmp_path / "net-loss.jsonl").read_text().splitlines()]
    assert [event.step for event in events.Scalars("loss")] == [0, 10, 20, 30, 40] == [row["step"] for row in logged]
    for event, row in zip(events.Scalars("error"), logged, strict=True):
        assert event.value == pytest.approx(row["error"], abs=1e-6)
