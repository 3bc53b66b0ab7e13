"""The training recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dive_fast.reid.dataset import AugmentConfig
from dive_fast.reid.model import ModelConfig
from dive_fast.reid.sampler import Missing
from dive_fast.types import InputError, from_dict


@dataclass(frozen=True)
class ReidConfig:
    """A training recipe; the default is tuned for the pocket world (128x64 images, about 200 people, one CPU thread).

    A batch is `identities` x (`per_modality` visible + as many infrared); `missing` and `synthetic_share` as in
    `PairSampler`. The run lasts `steps`, or `epochs` (AGW's count: one sees as many images as the larger modality has)
    when `steps` is None. The rate `lr` rises linearly over the first `warmup` of the run and then falls as a "cosine" to
    0, or tenfold at each of the `drops` ("step"; all fractions of the run); `backbone_lr` scales it for stems and trunk.
    Loss: cross entropy with label `smoothing` plus the "weighted" or "hard" triplet (`margin` is for "hard").
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    identities: int = 8
    per_modality: int = 3
    missing: Missing = "refuse"
    synthetic_share: float | None = None
    steps: int | None = 500
    epochs: int | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 2e-3
    backbone_lr: float = 1.0
    weight_decay: float = 5e-4
    warmup: float = 0.1
    schedule: Literal["cosine", "step"] = "cosine"
    drops: tuple[float, ...] = (0.33, 0.83)
    triplet: Literal["weighted", "hard"] = "weighted"
    margin: float = 0.3
    smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise InputError(f"give either steps or epochs, got steps {self.steps} and epochs {self.epochs}")
        if (self.steps or self.epochs or 0) < 1:
            raise InputError("steps or epochs must be at least 1")
        for name, values in (
            ("optimizer", ("adam", "sgd")),
            ("schedule", ("cosine", "step")),
            ("triplet", ("weighted", "hard")),
        ):
            if getattr(self, name) not in values:
                raise InputError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if not (self.lr > 0 and 0 <= self.warmup < 1 and 0 <= self.smoothing < 1):
            raise InputError(f"lr must be above 0, warmup and smoothing within 0..1, got {self.lr}, {self.warmup}, "
                             f"{self.smoothing}")  # fmt: skip


def config_from_dict(data: Any, where: str) -> ReidConfig:
    """The config that `to_dict` made into JSON; unknown fields raise `InputError` naming `where`."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return from_dict(
        ReidConfig,
        {
            **data,
            "model": from_dict(ModelConfig, data.get("model", {}), where),
            "augment": from_dict(AugmentConfig, data.get("augment", {}), where),
            "drops": tuple(data.get("drops", ())),
        },
        where,
    )


def learning_rate(step: int, total: int, config: ReidConfig) -> float:
    """The factor on `lr` at `step` (from 0) of `total`."""
    warmup = config.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return math.prod(0.1 for drop in config.drops if step >= drop * total)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))
