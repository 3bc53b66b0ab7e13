"""A tiny base, photos of six people in colours of their own, an untrained net that reads them, and a trained encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dive_fast.encoder.features import FeatureNet, open_features
from dive_fast.encoder.folder import Encoder, load_encoder
from dive_fast.encoder.train import train_encoder
from dive_fast.models import Adapter, load_adapter, load_bundle
from dive_fast.models.phrase import Phrase
from dive_fast.train.tagger import Tagger, TaggerNet, save_tagger
from dive_fast.types import Sample
from tests.support.checkpoints import write_net
from tests.support.city import one_thread, single_thread
from tests.support.encoders import CONFIG, draw

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Six people by two RGB cameras and an infrared one, two photos each."""
    root = tmp_path_factory.mktemp("photos")
    return [
        Sample(draw(root / f"{pid}-{camera}-{n}.png", pid, n), f"{pid:04d}", camera, "real", modality)
        for pid in range(1, 7)
        for camera, modality in (("cam1", "rgb"), ("cam2", "rgb"), ("cam3", "ir"))
        for n in range(2)
    ]


@pytest.fixture(scope="session")
def newcomers(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Three further people: with four RGB photos, with one, and with infrared alone."""
    root = tmp_path_factory.mktemp("newcomers")
    kinds = [(11, "cam1", "rgb", 4), (12, "cam2", "rgb", 1), (13, "cam3", "ir", 2)]
    return [
        Sample(draw(root / f"{pid}-{n}.png", pid, n), f"{pid:04d}", camera, "real", modality)  # type: ignore[arg-type]
        for pid, camera, modality, count in kinds
        for n in range(count)
    ]


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_net(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="session")
def source(net: Path) -> FeatureNet:
    return open_features(net)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tagger with random weights."""
    folder, phrase = tmp_path_factory.mktemp("tagger") / "tagger", Phrase("{a|of} {photo} {a|of|person}")
    torch.manual_seed(0)
    save_tagger(Tagger(phrase, TaggerNet([2, 3]), (32, 16)), folder)
    return folder


@pytest.fixture(scope="session")
def trained(tiny_base: Path, photos: list[Sample], source: FeatureNet, tmp_path_factory) -> Path:
    """The folder of an encoder that learned beside a LoRA for a few steps. Read only."""
    out = tmp_path_factory.mktemp("trained") / "encoder"
    with single_thread():  # as the tests that compare with it
        train_encoder(load_bundle(tiny_base), photos, out, CONFIG, source, progress=False)
    return out


@pytest.fixture(scope="session")
def encoder(trained: Path) -> Encoder:
    return load_encoder(trained)


@pytest.fixture(scope="session")
def adapter(trained: Path) -> Adapter:
    return load_adapter(trained / "adapter")
