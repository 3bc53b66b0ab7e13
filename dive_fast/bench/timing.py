"""Calls and stages timed by the device's clock, candidates interleaved; quantiles and ratios of the times."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dive_fast.types import InputError


@dataclass(frozen=True)
class Quantiles:
    """The 5th, 50th and 95th percentile of `n` measurements (linear between neighbours)."""

    p5: float
    p50: float
    p95: float
    n: int


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, round by round: least, median and most."""

    low: float
    median: float
    high: float
    n: int


def quantiles(values: Sequence[float]) -> Quantiles:
    """Of at least one measurement."""
    if not values:
        raise InputError("no measurement to summarise; measure at least once")
    p5, p50, p95 = (float(q) for q in np.percentile(values, (5, 50, 95)))
    return Quantiles(p5, p50, p95, len(values))


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Their time over ours in each round: above 1 we are the faster ones."""
    rounds = [t / o for t, o in zip(theirs, ours, strict=True)]
    return Ratio(min(rounds), statistics.median(rounds), max(rounds), len(rounds))


class Clock:
    """Marks in time, and milliseconds between two, for a `device` type.

    A GPU's are its own (events on the current stream), so that the time to launch counts only where it is not hidden.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, begin: Any, end: Any) -> float:
        if not self._cuda:
            return float(1e3 * (end - begin))
        end.synchronize()
        return float(begin.elapsed_time(end))


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    warm_up: int = 1,
    before: Callable[[], object] = lambda: None,
    seconds: float = math.inf,
) -> dict[str, list[float]]:
    """Milliseconds of each call, the candidates interleaved so that changes of the machine's speed hit all alike.

    By the `Clock` of the `device` type; `before` runs before each call and is not timed. After `seconds` no further round
    begins, but one is measured always.
    """
    clock = Clock(device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for number in range(repeats + warm_up):
        if number > warm_up and time.perf_counter() > end:
            break
        for name, run in runs.items():
            before()
            begin = clock.mark()
            run()
            taken = clock.between(begin, clock.mark())
            if number >= warm_up:
                times[name].append(taken)
    return times


class Stages:
    """Milliseconds by named stage of one pass; called as `StageClock` is. A stage entered twice adds up.

    Nothing waits for the device until `milliseconds` is asked for.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._clock = Clock(device)
        self._marks: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = self._clock.mark()
        yield
        self._marks.append((stage, begin, self._clock.mark()))

    def milliseconds(self) -> dict[str, float]:
        """By stage, in the order in which they were first left."""
        found: dict[str, float] = {}
        for stage, begin, end in self._marks:
            found[stage] = found.get(stage, 0.0) + self._clock.between(begin, end)
        return found
