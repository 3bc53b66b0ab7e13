"""A fleet at work, event by event: shards handed out, workers that differ and fail, one disk that all wait for."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dive_fast.bench.fleet import Fleet
from dive_fast.types import InputError

SLOWEST = 0.2  # of the mean rate: no worker of the normal distribution's tail stands still
DRAWS = 4096  # of the time to a failure, at once


@dataclass(frozen=True)
class Simulated:
    """`seconds` until the last shard is written, and seconds that all workers together lost to failures."""

    seconds: float
    failures: int
    lost_seconds: float


def simulate(fleet: Fleet, workers: int, shards: int, seed: int = 0) -> Simulated:
    """A worker takes the next shard, computes it and hands it to the disk, which writes one after the other.

    It goes on meanwhile, but holds one finished shard at most: with the last one not written it waits. A failure loses the
    shard, which goes back to the others; the worker returns after `startup`. Same seed, same result.
    """
    if workers < 1 or shards < 1:
        raise InputError(f"capacity: workers and shards must be at least 1, got {workers} and {shards}")
    return _Simulation(fleet, workers, shards, np.random.default_rng(seed)).run()


class _Simulation:
    def __init__(self, fleet: Fleet, workers: int, shards: int, random: np.random.Generator) -> None:
        drawn = random.standard_normal(workers)
        spread = np.maximum(SLOWEST, 1 + fleet.rate_std * (drawn - drawn.mean()))  # the mean rate is the measured one
        self._compute = (fleet.compute_seconds / spread).tolist()
        self._fleet, self._left, self._random = fleet, shards, random
        self._written = [0.0] * workers  # when each one's last shard is on the disk
        self._disk = 0.0  # when the disk is free
        self._idle: list[int] = []
        self._draws: list[float] = []
        self._events: list[tuple[float, int, int, Callable[[float, int], None]]] = []
        self._number = 0
        self._failures, self._lost = 0, 0.0
        for worker in range(workers):
            self._at(fleet.startup, worker, self._ready)

    def run(self) -> Simulated:
        while self._events:
            now, _, worker, happens = heapq.heappop(self._events)
            happens(now, worker)
        return Simulated(self._disk, self._failures, self._lost)

    def _at(self, when: float, worker: int, happens: Callable[[float, int], None]) -> None:
        self._number += 1  # of two events at the same time the first planned one comes first
        heapq.heappush(self._events, (when, self._number, worker, happens))

    def _ready(self, now: float, worker: int) -> None:
        if not self._left:
            self._idle.append(worker)
            return
        self._left -= 1
        failure = self._next_failure()
        if failure < self._compute[worker]:
            self._lost += failure
            self._at(now + failure, worker, self._failed)
        else:
            self._at(now + self._compute[worker], worker, self._computed)

    def _failed(self, now: float, worker: int) -> None:
        self._failures += 1
        self._left += 1
        self._at(now + self._fleet.startup, worker, self._ready)
        if self._idle:
            self._at(now, self._idle.pop(), self._ready)

    def _computed(self, now: float, worker: int) -> None:
        before = max(now, self._written[worker])
        self._disk = max(self._disk, now) + self._fleet.write_seconds
        self._written[worker] = self._disk
        self._at(before, worker, self._ready)

    def _next_failure(self) -> float:
        """Seconds from the start of a shard: without memory, so it need not be remembered from shard to shard."""
        if math.isinf(self._fleet.mtbf_hours):
            return math.inf
        if not self._draws:
            self._draws = (3600 * self._fleet.mtbf_hours * self._random.standard_exponential(DRAWS)).tolist()
        return self._draws.pop()
