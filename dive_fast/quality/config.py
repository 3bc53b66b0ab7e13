"""The settings of `dive-fast score`, `filter`, `compare-sets` and `card`, and what each score means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from dive_fast.settings import AtLeast, NonNegativeInt, PositiveInt, Settings, Within
from dive_fast.types import InputError, Modality, shown

FEWEST = 4  # images of a camera for compare-sets: two blocks of two
CALIBRATED = "calibrated"  # in place of a number: the threshold that scores.json holds

MEANINGS: dict[str, tuple[str, bool]] = {
    "identity": (
        "cosine similarity to the centroid of the identity's real RGB images (infrared ones if it has no RGB), minus that "
        "to the nearest other identity's in the same modality; above 0 the nearest identity is the right one",
        True,
    ),
    "modality": (
        "probability that the image is of its modality, by a linear probe on the extractor's features of real images' luma",
        True,
    ),
    "diversity": (
        "1 - cosine similarity to the most alike other generated image of the same identity and camera; absent if there "
        "is none; 0 for a copy",
        True,
    ),
    "memorisation": (
        "cosine similarity to the most alike training image of the same modality; the threshold is what real images of "
        "one person hardly ever reach among themselves",
        False,
    ),
}
"""Each score's meaning, and whether high values are good."""


@dataclass(frozen=True)
class ScoreConfig(Settings):
    """What `dive-fast score` measures."""

    scores: tuple[str, ...] = tuple(MEANINGS)
    """Scores to give, comma-separated."""
    percentile: Annotated[float, Within(50, 100)] = 99.9
    """Percentile of the similarities between real images of one person: memorisation's threshold."""
    batch: PositiveInt = 128
    """Images per call of the extractor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.scores if name not in MEANINGS]
        if unknown or not self.scores:
            raise InputError(f"scores must be some of {', '.join(MEANINGS)}, got {', '.join(self.scores) or 'none'}")


@dataclass(frozen=True)
class Threshold:
    """One threshold of a filter: `value` is a number, "calibrated", or for "keep-fraction" the fraction of pairs to keep."""

    score: str
    side: Modality | None
    value: str
    kind: str  # "min", "max", "keep-fraction"


def parse_threshold(kind: str, text: str) -> Threshold:
    """Parses "[SIDE.]SCORE=VALUE", as identity=0.1, ir.modality=0.5, memorisation=calibrated."""
    match = re.fullmatch(r"(?:(rgb|ir)\.)?([a-z_]+)=(\S+)", text)
    value = match[3] if match else ""
    number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", value)
    if not match or not (number or (value == CALIBRATED and kind == "max")):
        raise InputError(
            f"--{kind} {shown(text)} is not [SIDE.]SCORE=NUMBER, as identity=0.1 or ir.modality=0.5"
            + (f", or SCORE={CALIBRATED}" if kind == "max" else "")
        )
    if kind == "keep-fraction" and not 0 < float(value) <= 1:
        raise InputError(f"--keep-fraction {shown(text)}: a fraction is above 0 and at most 1")
    return Threshold(match[2], match[1], value, kind)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FilterConfig:
    """Which pairs `dive-fast filter` keeps."""

    min: Sequence[str] = ()
    """[SIDE.]SCORE=NUMBER: keeps pairs with at least that score, as identity=0.1."""
    max: Sequence[str] = ()
    """[SIDE.]SCORE=NUMBER: keeps pairs with at most that score; memorisation=calibrated takes the measured threshold."""
    keep_fraction: Sequence[str] = ()
    """[SIDE.]SCORE=FRACTION: keeps the best part of all pairs, as identity=0.9."""
    allow_lost: bool = False
    """Goes on when identities are left without a modality."""

    @property
    def thresholds(self) -> list[Threshold]:
        kinds = {"min": self.min, "max": self.max, "keep-fraction": self.keep_fraction}
        return [parse_threshold(kind, text) for kind, texts in kinds.items() for text in texts]


@dataclass(frozen=True)
class CompareConfig(Settings):
    """Which images `dive-fast compare-sets` measures."""

    most: Annotated[int, AtLeast(FEWEST)] = 50_000
    """Images of a camera and set at most, drawn by the seed."""
    seed: NonNegativeInt = 0
    """Seed of the draws and of KID's blocks."""
    kept_only: bool = False
    """Leaves out the pairs that a filter dropped."""


@dataclass(frozen=True)
class CardConfig:
    """What the card says that the dataset does not know."""

    model: Path | None = None
    """Engine or fused folder that made the images; the card then names its base and adapter."""
    licence: str | None = None
    """The dataset's licence; without it the card leaves a place to fill in."""
    contact: str | None = None
    """Whom to ask, and to ask for removal."""
