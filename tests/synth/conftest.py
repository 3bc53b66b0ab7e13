"""What a run makes that nothing disturbs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dive_fast.synth import SynthesisPlan
from tests.support.fake_engine import contents, make, plan_of


@pytest.fixture
def plan() -> SynthesisPlan:
    """6 shards of 3 pairs."""
    return plan_of(shard_size=3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of `plan`."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    make(plan_of(shard_size=3), out, rows=4)
    return contents(out)
