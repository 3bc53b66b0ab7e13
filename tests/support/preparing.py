"""A prepared set of `mixed_trees`, made for the tests of preparing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dive_fast.data.config import PrepareConfig
from dive_fast.data.counts import count_sets
from dive_fast.data.filters import apply_filters
from dive_fast.data.prepare import PreparePlan, claimed, finish, finished_shards, pack
from dive_fast.data.prepared import open_prepared
from dive_fast.data.sets import SetSpec, read_sets
from tests.support.trees import contents


def plan_of(root: Path, **settings: Any) -> PreparePlan:
    """The 14 images of `mixed_trees`, in 3 shards."""
    config = PrepareConfig(**{"shard_size": 5, **settings})
    sets = read_sets([SetSpec("sysu", root / "sysu"), SetSpec("market", root / "market", "1")])
    left, dropped = apply_filters(sets, config)
    return PreparePlan(tuple(left), tuple(count_sets(sets)), config, tuple(dropped))


def prepare(plan: PreparePlan, out: Path, progress: Callable[[int], object] = lambda _: None) -> dict[str, Any]:
    with claimed(out, plan):
        pack(plan, out, finished_shards(out, plan), progress)
        finish(plan, out)
    return open_prepared(out).report


def contents_of(plan: PreparePlan, out: Path) -> dict[str, bytes]:
    prepare(plan, out)
    return contents(out)


def break_file(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path
