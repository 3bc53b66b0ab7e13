"""The tiny model's engine by each backend that computes what diffusers' pipeline does."""

from __future__ import annotations

import pytest

from dive_fast.engines.base import EngineBase
from tests.support.engines import BACKENDS, opened
from tests.support.tensorrt_double import double

__all__ = ["double"]  # a fixture


@pytest.fixture(scope="module", params=BACKENDS)
def engine(request: pytest.FixtureRequest) -> EngineBase:
    return opened(request.getfixturevalue("tiny_fused" if request.param == "torch" else "tiny_engine"), request.param)
