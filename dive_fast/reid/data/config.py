"""Settings of the training batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dive_fast.settings import Fraction, NonNegativeInt, Settings, Within

Missing = Literal["refuse", "drop", "visible"]


@dataclass(frozen=True)
class AugmentConfig(Settings):
    """Random changes of training images; 0 turns any of them off."""

    flip: Fraction = 0.5
    """Probability of mirroring an image."""
    crop: NonNegativeInt = 6
    """Largest shift of an image in pixels, in both directions."""
    erase: Fraction = 0.5
    """Probability of erasing a random box (arXiv:1708.04896)."""
    exchange: Fraction = 0.5
    """Probability that a visible image keeps one channel, or its luma, in all three channels (CAJ, ICCV 2021)."""
    brightness: Fraction = 0.2
    """Largest relative change of brightness."""
    fill: Literal["edge", "black"] = "edge"
    """Pixels beyond the border of a shifted image: its repeated edge, or black."""
    erase_most: Annotated[float, Within(0.02, 1)] = 0.3
    """Largest fraction of the image that an erased box covers; the smallest is 0.02."""
    erase_fill: Literal["mean", "channels"] = "mean"
    """Content of an erased box: the mean grey, or another value in each channel (CAJ)."""
