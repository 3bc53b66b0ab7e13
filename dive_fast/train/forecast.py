"""Dry runs: what a training would take, from a few steps of it: steps, memory, disk and time."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from dive_fast.train.loop import TrainState
from dive_fast.train.memory import PeakMemory, optimizer_bytes
from dive_fast.types import to_dict
from dive_fast.words import duration, size

WARM_UP, TIMED = 2, 3  # steps of each phase; memory is measured in the last one of the warm-up


@dataclass(frozen=True)
class PhaseForecast:
    """One phase: its steps, those that a stopped run has done, its trained values, and the cost of a step.

    `optimizer_bytes` are AdamW's moments and the average; `step_bytes` are gradients and activations, an estimate.
    """

    name: str
    steps: int
    done: int
    trainable: int
    seconds: float
    optimizer_bytes: int
    step_bytes: int

    def text(self, batch: str) -> str:
        """For a reader; `batch` is what a step sees, as "32 photos"."""
        done = f" ({self.done:,} done)" if self.done else ""
        return (
            f"{self.name}: {self.steps:,} steps of {batch}{done}; {self.trainable:,} trained values;"
            f" {self.seconds:.3g} s per step; {size(self.optimizer_bytes)} of optimizer and average, about"
            f" {size(self.step_bytes)} of gradients and activations"
        )


@dataclass(frozen=True)
class Forecast(ABC):
    """A dry run's result; each training has a subclass. Bytes are per process.

    `data_bytes` are what the training learns from, in main memory; `data_seconds` the time to make what is missing of it.
    """

    batch: int
    stages: tuple[PhaseForecast, ...]  # the phases, by the key that --json has
    weights_bytes: int
    data_bytes: int
    data_seconds: float
    disk_bytes: int
    device: str

    examples: ClassVar[str]  # what a step sees several of, as "photos"
    data: ClassVar[str]  # what they become in memory, as "latents"
    making: ClassVar[str]  # how, as "encode photos"

    @property
    def memory_bytes(self) -> int:
        """Device memory in the largest phase."""
        return self.weights_bytes + max(phase.optimizer_bytes + phase.step_bytes for phase in self.stages)

    @property
    def seconds(self) -> float:
        return self.data_seconds + sum((phase.steps - phase.done) * phase.seconds for phase in self.stages)

    @abstractmethod
    def about(self) -> list[str]:
        """Returns lines about the data."""

    def text(self) -> str:
        return "\n".join(
            [
                "dry run: nothing was written",
                *self.about(),
                *(phase.text(f"{self.batch} {self.examples}") for phase in self.stages),
                f"memory: about {size(self.memory_bytes)} on {self.device}, {size(self.weights_bytes)} of it weights;"
                f" {size(self.data_bytes)} of {self.data} in main memory",
                f"disk: at most {size(self.disk_bytes)}",
                f"time: about {duration(self.seconds)}, of which {duration(self.data_seconds)} to {self.making}",
            ]
        )

    def summary(self) -> dict[str, Any]:
        """All numbers, for --json."""
        return {**to_dict(self), "memory_bytes": self.memory_bytes, "seconds": self.seconds}


def measure(train: TrainState, done: int) -> PhaseForecast:
    """Takes and measures a few steps of a phase, of whose steps a stopped run has `done` some."""
    for step in range(WARM_UP - 1):
        train.step(step)
    with PeakMemory() as memory:
        train.step(WARM_UP - 1)
    seconds = []
    for step in range(WARM_UP, WARM_UP + TIMED):
        begun = time.perf_counter()
        loss, _ = train.step(step)
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    return PhaseForecast(
        name=train.config.name,
        steps=train.config.steps,
        done=done,
        trainable=sum(parameter.numel() for parameter in train.parameters),
        seconds=statistics.median(seconds),
        optimizer_bytes=optimizer_bytes(train.parameters, bool(train.config.average)),
        step_bytes=memory.peak,
    )
