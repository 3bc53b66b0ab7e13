"""Settings of the training batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dive_fast.reid.checks import check_fields

Missing = Literal["refuse", "drop", "visible"]


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; 0 turns any of them off."""

    flip: float = 0.5
    """Probability of mirroring an image."""
    crop: int = 6
    """Largest shift of an image in pixels, in both directions."""
    erase: float = 0.5
    """Probability of erasing a random box (arXiv:1708.04896)."""
    exchange: float = 0.5
    """Probability that a visible image keeps one channel, or its luma, in all three channels (CAJ, ICCV 2021)."""
    brightness: float = 0.2
    """Largest relative change of brightness."""
    fill: Literal["edge", "black"] = "edge"
    """Pixels beyond the border of a shifted image: its repeated edge, or black."""
    erase_most: float = 0.3
    """Largest fraction of the image that an erased box covers; the smallest is 0.02."""
    erase_fill: Literal["mean", "channels"] = "mean"
    """Content of an erased box: the mean grey, or another value in each channel (CAJ)."""

    def __post_init__(self) -> None:
        fraction = (0, 1)
        check_fields(
            self,
            flip=fraction,
            crop=(0, None),
            erase=fraction,
            exchange=fraction,
            brightness=fraction,
            erase_most=(0.02, 1),
        )
