"""Images a second of a dataset's synthesis, from the times of its shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dive_fast.json_files import read_jsonl
from dive_fast.types import InputError

TIMES = "times.jsonl"
_EVENTS_A_BIN, _BINS = 4, 120
_FAR_FUTURE = 1e11  # the year 5138: later is no time in seconds


class Event(NamedTuple):
    """`images` more were finished at a time (Unix seconds)."""

    at: float
    images: int


@dataclass(frozen=True)
class Throughput:
    """Images a second between `edges` (Unix seconds) [N + 1], pauses included; the first event has no beginning."""

    edges: NDArray[np.float64]
    rate: NDArray[np.float64]
    images: int

    @property
    def seconds(self) -> float:
        return float(self.edges[-1] - self.edges[0])

    @property
    def mean(self) -> float:
        return self.images / self.seconds


def read_times(dataset: Path) -> list[Event] | None:
    """The events of times.jsonl; None when there is no such file."""
    path = dataset / TIMES
    if not path.exists():
        return None
    lines = enumerate(read_jsonl(path, "times"), start=1)
    return [_event(line, f"{path} line {number}") for number, line in lines]


def _event(line: Any, where: str) -> Event:
    held: dict[str, Any] = line if isinstance(line, dict) else {}
    at, images = held.get("at", -1), held.get("images")
    if type(at) in (int, float) and 0 <= at < _FAR_FUTURE and type(images) is int and images >= 0:
        return Event(float(at), images)
    raise InputError(f"{where} needs at (Unix seconds) and images (a count); delete the file")


def throughput(events: Sequence[Event]) -> Throughput | None:
    """The rate over time in up to 120 equal spans; None when the events span no second."""
    ordered = sorted(events)
    if len(ordered) < 2 or ordered[-1].at - ordered[0].at < 1:
        return None
    at, images = np.array([event.at for event in ordered]), np.array([event.images for event in ordered])
    bins = int(np.clip(len(ordered) // _EVENTS_A_BIN, 1, _BINS))
    counts, edges = np.histogram(at[1:], bins=bins, range=(at[0], at[-1]), weights=images[1:])
    return Throughput(edges, counts / np.diff(edges), int(images[1:].sum()))
