"""The settings of tiny encoders, and photos of people in colours of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dive_fast.encoder.config import EncoderConfig
from dive_fast.train.config import PersonalizeConfig

CONFIG = EncoderConfig(
    width=16,
    pooled=3,
    training=PersonalizeConfig(
        phrase="{person} {person}", identity_steps=4, steps=4, batch=4, rank=2, warmup=1, save_every=2
    ),
)


def draw(path: Path, pid: int, seed: int, size: tuple[int, int] = (40, 20)) -> Path:
    """A photo of person `pid`: two bands of the person's colours, and noise."""
    colours = np.random.default_rng([9, pid]).integers(30, 220, (2, 1, 3))
    bands = np.repeat(colours, size[0] // 2, axis=0) * np.ones((1, size[1], 1))
    pixels = bands + np.random.default_rng([8, pid, seed]).normal(0, 6, bands.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path
