"""What a plan takes: images, bytes on the disk and, at a given rate, time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dive_fast.data.pool import in_order
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.synth.writer import encoded
from dive_fast.types import Modality
from dive_fast.words import count, duration, size

_TILE = 256  # pixels of height and width of the noise whose files are measured
_RECORD_BYTES, _TAGS_BYTES = 1000, 500  # of a pair in its shard's record, and of provenance tags in an image, about


@dataclass(frozen=True)
class PlanForecast:
    """`images` to generate, the most `bytes` of the dataset, about, and `seconds` at `rate` images/s if that is given."""

    images: int
    bytes: int
    rate: float | None
    seconds: float | None

    def describe(self) -> str:
        """Returns the forecast as one sentence."""
        at = ""
        if self.seconds is not None:
            at = f", about {duration(self.seconds)} at {self.rate:.4g} images/s"
        return f"forecast: {count(self.images, 'image')} to generate, at most about {size(self.bytes)} on the disk{at}"


def forecast(plan: SynthesisPlan, rate: float | None = None) -> PlanForecast:
    """Returns what the whole plan takes; `rate` is in images/s, of all engines together.

    The bound of the disk takes every image for noise, which compresses worst, and each photo of the plan once.
    """
    images = len(plan.pairs) * len(plan.sides)
    per_pair = _RECORD_BYTES + sum(_most_bytes(plan, side) for side in plan.sides)
    return PlanForecast(
        images=images,
        bytes=len(plan.pairs) * per_pair + _photo_bytes(plan),
        rate=rate,
        seconds=None if rate is None else images / rate,
    )


def _most_bytes(plan: SynthesisPlan, side: Modality) -> int:
    """Returns the bytes of an image of noise, by the density of a tile's file."""
    height, width = min(plan.height, _TILE), min(plan.width, _TILE)
    shape = (height, width) if side == "ir" else (height, width, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tile = encoded(Image.fromarray(noise), plan.image_format, {})
    return _TAGS_BYTES + len(tile) * plan.height * plan.width // (height * width)


def _photo_bytes(plan: SynthesisPlan) -> int:
    if plan.photo_root is None:
        return 0
    photos = {photo for identity in plan.identities for _, photo in identity.rgb if photo is not None}
    return sum(bytes for _, bytes in in_order(os.path.getsize, [Path(plan.photo_root, photo) for photo in photos]))
