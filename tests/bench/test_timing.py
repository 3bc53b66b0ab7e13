"""Times: who is measured when, what is said of them, and stages that add up."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from dive_fast.bench.timing import Quantiles, Ratio, Stages, interleaved, quantiles, ratio
from tests.support.refusals import refused


def test_candidates_run_in_turns_and_warm_ups_do_not_count() -> None:
    order: list[str] = []
    runs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    times = interleaved(runs, 2, warm_up=1, before=lambda: order.append("-"))
    assert "".join(order) == "-a-b" * 3
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_what_runs_before_is_not_timed(sleep: Callable[[float], None]) -> None:
    (values,) = interleaved({"a": lambda: sleep(0.01)}, 3, before=lambda: sleep(0.05)).values()
    assert values == pytest.approx([10, 10, 10])


def test_rounds_end_after_the_time_limit_but_for_one(sleep: Callable[[float], None]) -> None:
    runs = {"slow": lambda: sleep(3), "quick": lambda: sleep(1)}
    assert [len(values) for values in interleaved(runs, 9, seconds=10).values()] == [2, 2]  # 4 s a round, one warms up
    assert [len(values) for values in interleaved(runs, 9, seconds=1).values()] == [1, 1]


def test_percentiles_and_ratios_by_hand() -> None:
    assert quantiles(list(range(101))) == Quantiles(5, 50, 95, 101)
    assert quantiles([1.0, 2.0]) == Quantiles(pytest.approx(1.05), 1.5, pytest.approx(1.95), 2)  # type: ignore[arg-type]
    assert ratio([10, 20, 60], [10, 40, 20]) == Ratio(0.5, 1.0, 3.0, 3)
    refused("no measurement", quantiles, [])


def test_stages_add_up_and_may_lie_within_each_other(sleep: Callable[[float], None]) -> None:
    stages = Stages()
    for _ in range(2):
        with stages("outer"):
            sleep(0.02)
            with stages("inner"):
                sleep(0.01)
    assert stages.milliseconds() == pytest.approx({"inner": 20, "outer": 60})


@pytest.mark.gpu
def test_a_gpu_is_timed_by_its_own_clock() -> None:
    """A product that takes the device long and the host nothing: launched without waiting, and yet its whole time counts."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA build of torch and a GPU")
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    begun = time.perf_counter()
    for _ in range(5):
        a @ a
    launched = time.perf_counter() - begun
    torch.cuda.synchronize()
    waited = time.perf_counter() - begun
    (values,) = interleaved({"five": lambda: [a @ a for _ in range(5)]}, 3, "cuda").values()
    assert 1e3 * launched < min(values) and max(values) < 5e3 * waited
    stages = Stages("cuda")
    with stages("five"):
        for _ in range(5):
            a @ a
    assert stages.milliseconds()["five"] == pytest.approx(sorted(values)[1], rel=0.5)
