"""A toy city: people are coloured boxes, infrared shows another property of them; a small net learns it in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dive_fast.json_files import read_jsonl
from dive_fast.reid.data.config import AugmentConfig
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.train import train_reid
from dive_fast.types import Sample

TINY = ReidConfig(
    model=ModelConfig(height=64, width=32, stripes=2),
    augment=AugmentConfig(crop=2),
    identities=4,
    per_modality=2,
    steps=6,
)
"""A few steps on small images."""


@contextmanager
def single_thread() -> Iterator[None]:
    """Computes on one thread in the block: with another number, sums round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_thread():
    with single_thread():
        yield


def photo(pid: int, camera: int, number: int, size: tuple[int, int] = (32, 64)) -> Image.Image:
    """Three stacked boxes whose colours (visible) or brightness (infrared) are those of person `pid`."""
    person = np.random.default_rng([7, pid]).integers(40, 215, (3, 3))
    noise = np.random.default_rng([pid, camera, number])
    width, height = size
    image = np.full((height, width, 3), 30 + 12 * camera, np.float64)
    for part in range(3):
        rows = slice(height * part // 3, height * (part + 1) // 3)
        image[rows, width // 4 : -width // 4] = person[part] if camera not in (3, 6) else person[part].mean()
    image += noise.normal(0, 6, image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def train(samples: list[Sample], config: ReidConfig, out: Path, **options: Any) -> Path:
    return train_reid(samples, config, out, progress=False, **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def log(out: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(out / "log.jsonl", ""))


def make_samples(
    root: Path, pids: range, cameras: tuple[int, ...], each: int = 3, source: str = "real"
) -> list[Sample]:
    """Writes a small SYSU-like tree and lists it."""
    samples = []
    for pid in pids:
        for camera in cameras:
            for number in range(1, each + 1):
                path = root / f"cam{camera}" / f"{pid:04d}" / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                photo(pid, camera, number).save(path)
                modality = "ir" if camera in (3, 6) else "rgb"
                samples.append(Sample(path, f"{pid:04d}", f"cam{camera}", source, modality))
    return samples
