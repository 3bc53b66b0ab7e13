"""The settings of `dive-fast train-encoder`, `encode` and `virtual`. Importing them loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from dive_fast.settings import NonNegativeFloat, NonNegativeInt, Part, PositiveInt, Settings, Within
from dive_fast.train.config import PersonalizeConfig

FREE_WORDS = " ".join(["{person}"] * 4)
_TRAINING = PersonalizeConfig(phrase=FREE_WORDS)
# Of personalize: what belongs to rows that are learned one person at a time, and class photos.
_NOT_HERE = ("words_from", "token_lr", "mix_lr", "prior")


@dataclass(frozen=True)
class EncoderConfig(Settings):
    """How an encoder is trained: personalize's settings, and those of the mapper."""

    mapper_lr: NonNegativeFloat = 1e-3
    """Peak learning rate of the mapper; 0 keeps the mapper of --start-from."""
    width: PositiveInt = 384
    """Width of the mapper's hidden layers."""
    pooled: PositiveInt = 4
    """Largest number of photos that the encoder sees of a person in a training step; the number is drawn."""
    feature_drop: Annotated[float, Within(0, 0.9)] = 0.1
    """Fraction of image features that a training step leaves out."""
    vocabulary_weight: NonNegativeFloat = 0.01
    """Weight of the penalty that keeps the lengths of predicted rows near those of the vocabulary, as E4T (arXiv
    2302.12228)."""
    training: Annotated[PersonalizeConfig, Part(skip=_NOT_HERE)] = _TRAINING
    """What personalize has too."""


@dataclass(frozen=True)
class VirtualConfig(Settings):
    """How virtual people are drawn."""

    people: PositiveInt
    """Number of virtual people."""
    seed: NonNegativeInt = 0
    """Seed of the draws."""
    prefix: str = "9"
    """Start of their names, which six digits follow; readers of SYSU-MM01 take numbers only."""
    percentile: Annotated[float, Within(0, 100)] = 5.0
    """A draw is refused when it lies nearer to a real person, or to another draw, than this percentile of real people's
    distances to their nearest."""
