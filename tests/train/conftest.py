"""A tiny base model and photos of four people, for every test of training."""

from pathlib import Path

import pytest
import torch
from PIL import Image

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
