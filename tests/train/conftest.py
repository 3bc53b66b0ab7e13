"""A tiny base model and photos of four people, for every test of training."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dive_fast.models import Adapter, load_bundle
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.personalize import personalize
from dive_fast.types import Sample
from tests.support.tiny import tiny_bundle_folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Three people in one RGB and one infrared camera, two photos each; a fourth in RGB only."""
    root = tmp_path_factory.mktemp("photos")
    made = []
    for pid in range(1, 5):
        for camera, modality in (("cam1", "rgb"), ("cam3", "ir")):
            if pid == 4 and modality == "ir":
                continue
            for shot in range(2):
                path = root / f"{pid}-{camera}-{shot}.png"
                pixels = torch.Generator().manual_seed(pid * 10 + shot)
                noise = torch.randint(0, 255, (40, 20, 3), generator=pixels, dtype=torch.uint8)
                Image.fromarray(noise.numpy()).save(path)
                made.append(Sample(path, f"{pid:04d}", camera, "real", modality))
    return made


@pytest.fixture(scope="session")
def learn(base: Path) -> Callable[..., Adapter]:
    """`personalize` on a fresh copy of the base, without a progress bar."""

    def run(photos: Sequence[Sample], out: Path, config: PersonalizeConfig, **options: Any) -> Adapter:
        return personalize(load_bundle(base), photos, out, config, progress=False, **options)

    return run


@pytest.fixture(scope="session")
def folders(photos: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The photos as one folder per identity, RGB and infrared apart."""
    root = tmp_path_factory.mktemp("folders")
    for sample in photos:
        path = root / sample.modality / sample.pid / sample.path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.path, path)
    return root / "rgb", root / "ir"
