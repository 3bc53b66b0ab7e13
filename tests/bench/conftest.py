"""Small peaks; and a clock that only moves when it is told to, so that times can be asserted on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from dive_fast.bench import roofline

Sleep = Callable[[float], None]


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real sizes take a core ten seconds."""
    monkeypatch.setitem(roofline.GEMMS, "cpu", ((256, 256, 256), (384, 384, 384), (1024, 128, 128)))
    monkeypatch.setitem(roofline.COPY_BYTES, "cpu", 1 << 24)


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Sleep:
    """Moves `time.perf_counter` on by so many seconds; it stands still otherwise."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move
