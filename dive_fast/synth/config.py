"""The settings of `dive-fast plan`. Importing them loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dive_fast.sampling.config import STRENGTH, Sampling
from dive_fast.settings import Fraction, ImageSize, NonNegativeInt, OneOf, PositiveInt, Settings
from dive_fast.synth.planfile import ImageFormat
from dive_fast.types import USUAL_MODE, PairMode


@dataclass(frozen=True)
class PlanConfig(Settings):
    """Which pairs to generate, and how. Empty tuples choose all; a value out of bounds raises `InputError`."""

    sampling: Sampling | None = None
    """How images are sampled; by default as the model was made for."""
    mode: PairMode = USUAL_MODE
    """real-rgb: a real photo and a generated infrared image; synthetic: both sides generated from one noise; photo-guided:
    as real-rgb, and the infrared image starts from the photo and keeps its pose."""
    pids: tuple[str, ...] = ()
    """Identities; by default all that the model knows (and that have photos)."""
    ir: tuple[str, ...] = ()
    """Infrared cameras; by default all."""
    rgb: tuple[str, ...] = ()
    """RGB cameras of generated RGB sides; by default all."""
    pairs: PositiveInt = 18
    """Pairs per identity and infrared camera."""
    seed: NonNegativeInt = 0
    """Seed of the run; equal plans give equal images."""
    precision: Annotated[str, OneOf(("any", "fp32", "fp16", "bf16", "fp8", "int8"))] = "any"
    """Precision that engines of the plan must have."""
    strength: Fraction = STRENGTH
    """photo-guided: how far the infrared image may leave the photo."""
    size: ImageSize | None = None
    """Image size; by default the model's own."""
    shard_size: PositiveInt = 64
    """Pairs per shard, the unit of claims and records; take 1000 or more for millions of pairs."""
    image_format: ImageFormat = "png"
    """Format of generated images: png, lossless, or jpg (quality 95, smaller)."""
