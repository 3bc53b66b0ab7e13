"""Sizes at which the walk runs in seconds, and an engine that needs no export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.experiments.config import PairConfig
from dive_fast.reid.training.config import ReidConfig
from dive_fast.sampling import Sampling
from dive_fast.train.config import PersonalizeConfig
from dive_fast.world.config import WorldSpec

if TYPE_CHECKING:
    from dive_fast.engines import Engine
    from dive_fast.models import Adapter

SPEC = WorldSpec(paired_ids=8, test_ids=3, external_ids=4, images_per_camera=2, market_images=2)
LEARN = PersonalizeConfig(identity_steps=2, steps=2, batch=4, rank=2)
PAIRS = PairConfig(per_camera=1, sampling=Sampling(2), rows=8)
SMALL: dict[str, Any] = {
    "world": SPEC,
    "encoder": None,
    "learn": LEARN,
    "pairs": PAIRS,
    "reid": ReidConfig(steps=2, missing="visible", synthetic_fraction=0.25),
    "scorer": ReidConfig(steps=2, identities=3),
}


def torch_engine(model: str | Path, adapter: Adapter, work: Path, rows: int) -> Engine:
    """Stands in for `build_engine`: the fused folder by torch, in place of an export."""
    from dive_fast.engines import load_engine
    from dive_fast.models import fuse, load_bundle, save_bundle

    fused = work / "fused"
    if not fused.is_dir():
        save_bundle(fuse(load_bundle(model), adapter), fused)
    return load_engine(fused, size=(64, 32))
