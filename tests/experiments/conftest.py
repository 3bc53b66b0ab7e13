"""A small world, and an adapter of its people."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.walk import LEARN, SPEC


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dive_fast.world.trees import build_world

    out = tmp_path_factory.mktemp("walk") / "world"
    build_world(out, SPEC)
    return out


@pytest.fixture(scope="session")
def adapter(world: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on everyone but the first external person; it records the paired people as those seen in infrared."""
    from dive_fast.experiments import arms
    from dive_fast.models import load_bundle, save_adapter
    from dive_fast.train.personalize import personalize

    paired = arms.paired_photos(world)
    photos = [*paired, *(s for s in arms.external_photos(world) if s.pid != "1001")]
    folder = tmp_path_factory.mktemp("walk")
    made = personalize(load_bundle(tiny_base), photos, folder / "trained", LEARN, progress=False)
    seen = sorted({s.pid for s in paired if s.modality == "ir"})
    save_adapter(replace(made, metadata={**made.metadata, "infrared_identities": seen}), folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="session")
def encoder(world: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the paired people for a few steps."""
    from dive_fast.encoder.features import open_features
    from dive_fast.encoder.train import train_encoder
    from dive_fast.experiments import arms
    from dive_fast.models import load_bundle
    from tests.support.checkpoints import write_net
    from tests.support.encoders import CONFIG

    folder = tmp_path_factory.mktemp("walk-encoder")
    source = open_features(write_net(folder / "net"))
    photos = [s for s in arms.paired_photos(world) if s.modality == "rgb"]
    train_encoder(load_bundle(tiny_base), photos, folder / "encoder", CONFIG, source, progress=False)
    return folder / "encoder"
