"""Small trees of the real sets' shape, for the tests of readers and of preparing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dive_fast.types import Sample


def touch(root: Path, *names: str) -> Path:
    """Readers look at names only, so empty files will do for them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def photo(path: Path, seed: int = 0, height: int = 24, width: int = 12) -> Path:
    """A picture of noise; equal seeds give equal pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def names(samples: Sequence[Sample], root: Path) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]


def mixed_trees(root: Path) -> tuple[Path, Path]:
    """A SYSU tree of two people in cam1 and cam3 (8 photos), and a Market tree of three (1, 2 and 3 photos)."""
    sysu, market = root / "sysu", root / "market"
    for seed, (camera, pid, number) in enumerate(
        (camera, pid, number) for camera in ("cam1", "cam3") for pid in (1, 2) for number in (1, 2)
    ):
        photo(sysu / camera / f"{pid:04d}" / f"{number:04d}.jpg", seed)
    write(sysu / "exp/train_id.txt", "1")
    write(sysu / "exp/val_id.txt", "2")
    for seed, name in enumerate(
        [
            "0002_c1s1_000001_01",
            "0007_c2s1_000001_01",
            "0007_c2s1_000002_01",
            "0011_c1s1_000001_01",
            "0011_c3s1_000001_01",
            "0011_c3s1_000002_01",
        ]
    ):
        photo(market / "bounding_box_train" / f"{name}.jpg", 100 + seed)
    return sysu, market
