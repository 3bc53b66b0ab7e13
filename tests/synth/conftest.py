"""What a run makes that nothing disturbs."""

from __future__ import annotations

import pytest

from tests.support.fake_engine import contents, make, plan_of


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of `plan_of(shard_size=3)`: 6 shards of 3 pairs."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    make(plan_of(shard_size=3), out, rows=4)
    return contents(out)
