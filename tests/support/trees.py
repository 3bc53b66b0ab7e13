"""Small trees of the real sets' shape, for the tests of readers and of preparing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
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


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def names(samples: Sequence[Sample], root: Path) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]


def mixed_trees(root: Path) -> tuple[Path, Path]:
    """A SYSU tree of two people in cam1 and cam3 (8 photos), and a Market tree of three (1, 2 and 3 photos)."""
    sysu, market = root / "sysu", root / "market"
    for seed, (camera, pid, number) in enumerate(product(("cam1", "cam3"), (1, 2), (1, 2))):
        photo(sysu / camera / f"{pid:04d}" / f"{number:04d}.jpg", seed)
    write(sysu / "exp/train_id.txt", "1")
    write(sysu / "exp/val_id.txt", "2")
    boxes = "0002_c1s1_000001 0007_c2s1_000001 0007_c2s1_000002 0011_c1s1_000001 0011_c3s1_000001 0011_c3s1_000002"
    for seed, name in enumerate(boxes.split(), start=100):
        photo(market / "bounding_box_train" / f"{name}_01.jpg", seed)
    return sysu, market
