"""Recorded calls: the arguments of a second call are those that its own plan would give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_kernels import package, replay
from dive_kernels.attention.plan import plan as attention_plan
from dive_kernels.cross_attention.plan import plan as cross_attention_plan
from dive_kernels.geglu.plan import plan as geglu_plan
from dive_kernels.groupnorm_silu.arguments import Arguments
from dive_kernels.groupnorm_silu.plan import plan as groupnorm_plan
from dive_kernels.launch import Launch
from tests.support.attention_cases import bank, slices
from tests.support.groupnorm_cases import Case

HALF = torch.float16
Started = list[list[Any]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The values of every repeated launch; the first call of a kind starts nothing here."""
    found: Started = []
    monkeypatch.setattr(replay, "start", lambda launch: found.append)
    monkeypatch.setattr(replay, "on", lambda device: torch.no_grad())
    replay.forget()
    return found


def norm(others: int = 0, shifts: int = 0) -> tuple[Any, ...]:
    given = Case(64, 4, others=others, shifts=shifts, rows=2).inputs(HALF, "cpu")
    return tuple(Arguments(**given))


def feed_forward() -> tuple[Tensor, ...]:
    return torch.randn(2, 5, 32).half(), torch.randn(64, 32).half(), torch.randn(64).half()


PLANS: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "norm": (lambda *given: groupnorm_plan(Arguments(*given)), norm),
    "norm of two": (lambda *given: groupnorm_plan(Arguments(*given)), lambda: norm(others=32)),
    "shifted norm": (lambda *given: groupnorm_plan(Arguments(*given)), lambda: norm(shifts=2)),
    "geglu": (lambda *given: geglu_plan(*given, 90), feed_forward),
    "geglu without bias": (lambda *given: geglu_plan(*given, 90), lambda: (*feed_forward()[:2], None)),
    "attention": (lambda *given: attention_plan(*given, 90), lambda: tuple(slices(2, 5, 5, 2, 40, HALF, "cpu"))),
    "bank": (lambda *given: cross_attention_plan(*given, 90), lambda: tuple(bank(4, 5, 7, 2, 40, HALF, "cpu"))),
}


def listed(found: Any) -> tuple[list[Launch], Tensor]:
    launches, output = found
    return [launches] if isinstance(launches, Launch) else launches, output


@pytest.mark.parametrize(("plan", "given"), PLANS.values(), ids=PLANS)
def test_a_second_call_starts_what_a_plan_of_its_own_would(
    plan: Callable[..., Any], given: Callable[[], tuple[Any, ...]], started: Started
) -> None:
    calls = []

    def counted(*inputs: Any) -> Any:
        calls.append(inputs)
        return listed(plan(*inputs))

    replay.launched(counted, *given())
    second = given()
    output = replay.launched(counted, *second)
    assert len(calls) == 1
    launches, planned = listed(plan(*second))
    assert (output.shape, output.stride(), output.dtype) == (planned.shape, planned.stride(), planned.dtype)
    ours = {tensor.data_ptr() for tensor in second if isinstance(tensor, Tensor)}
    made: dict[str, int] = {"out_ptr": output.data_ptr()}
    assert len(started) == len(launches)
    for launch, values in zip(launches, started, strict=True):
        for (name, wanted), value in zip(launch.arguments.items(), values, strict=True):
            if not isinstance(wanted, Tensor):
                assert value == wanted, name
            elif wanted.data_ptr() in ours:
                assert value == wanted.data_ptr(), name
            else:  # allocated: one address in all launches
                assert value == made.setdefault(name, value) and value not in ours, name
    assert len(set(made.values())) == len(made)


def test_a_tensor_given_twice_is_not_taken_for_one(started: Started) -> None:
    plan = PLANS["norm"][0]
    x, weight, bias, *rest = norm()
    replay.launched(plan, x, weight, weight, *rest)
    replay.launched(plan, x, weight, bias, *rest)
    assert started[1][3:5] == [weight.data_ptr(), bias.data_ptr()]  # of the second launch


def doubled(x: Tensor, factor: float) -> tuple[list[Launch], Tensor]:
    out = torch.empty_like(x)
    return [Launch("m:f", (1,), {"x": x, "out": out, "factor": factor}, {})], out


def test_what_a_plan_depends_on_is_planned_again(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(32)
    others = [x.half(), x[:16], x[::2], x[1:17], x.view(4, 8)]
    for given in [(x, 1.0), *((other, 1.0) for other in others), (x, 2.0)]:
        replay.launched(doubled, *given)
    monkeypatch.setenv(package.FOLDER, "")
    replay.launched(doubled, x, 1.0)
    assert not started
    replay.launched(doubled, torch.ones(32), 1.0)
    assert len(started) == 1


def test_an_empty_grid_starts_nothing_and_an_interpreted_launch_is_not_recorded(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(x: Tensor) -> tuple[list[Launch], Tensor]:
        return [Launch("m:f", (0,), {"x": x}, {})], torch.empty_like(x)

    for _ in range(2):
        assert replay.launched(empty, torch.zeros(0, 3)).shape == (0, 3)
    assert not started
    monkeypatch.setattr(replay, "start", lambda launch: None)
    for _ in range(2):
        replay.launched(doubled, torch.zeros(3), 3.0)
    assert len(replay._recordings) == 1


def test_the_constants_of_triton_kernels_follow_their_arguments() -> None:
    """`run.with_triton` repeats a launch by position."""
    pytest.importorskip("triton", reason="triton is not installed (extra: kernels)")
    from importlib import import_module

    from dive_kernels.aot.build import triton_jobs

    for job in triton_jobs([90]):
        module, _, name = job.kernel.partition(":")
        names = getattr(import_module(module), name).arg_names
        assert names[: len(job.arguments)] == [argument for argument, _ in job.arguments]
        assert set(names[len(job.arguments) :]) == set(job.constants)
