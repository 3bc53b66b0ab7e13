"""The training recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from dive_fast.reid.data.augment import AugmentConfig
from dive_fast.reid.data.sampler import Missing
from dive_fast.reid.models.model import ModelConfig
from dive_fast.types import InputError, from_dict

Precision = Literal["fp32", "bf16", "fp16"]
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class ValidationConfig:
    """Whom the best weights are chosen on: `people` identities with real images of both modalities, held out of training.

    `split` is the seed of that choice: equal for runs that are compared, whatever their own seeds. They are scored every
    `every_steps` or `every_epochs` (neither: every epoch) and at the end.
    """

    people: int = 0
    split: int = 0
    every_steps: int | None = None
    every_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.people < 0 or self.people == 1:
            raise InputError(f"validation people must be 0 (no validation) or at least 2, got {self.people}")
        if self.every_steps is not None and self.every_epochs is not None:
            raise InputError("give every_steps or every_epochs of the validation, not both")
        if min(self.every_steps or 1, self.every_epochs or 1) < 1 or 0 in (self.every_steps, self.every_epochs):
            raise InputError("every_steps and every_epochs of the validation must be at least 1")


@dataclass(frozen=True)
class ReidConfig:
    """A training recipe; the default is tuned for the pocket world (128x64 images, about 200 people, one CPU thread).

    A batch is `identities` x (`per_modality` visible + as many infrared); `missing` and `synthetic_share` as in
    `PairSampler`. `synthetic_schedule` lets that share change over the run: (part of the run, share) pairs, linear between
    them, a step where two pairs have the same part. With `exchange_view` every visible image of a batch comes a second time
    as one channel in all three (CAJ), as the batch's third part.

    The run lasts `steps`, or `epochs` (AGW's count: one sees as many images as the larger modality has) when `steps` is
    None. The rate `lr` rises linearly over the first `warmup` of the run and then falls as a "cosine" to 0, or tenfold at
    each of the `drops` ("step"; all fractions of the run); or it changes between epochs alone ("epochs"), rising over
    `warmup_epochs` and falling tenfold after each of `drop_epochs`, as AGW's. `backbone_lr` scales it for stems and trunk.
    `decay_all`: the weight decay is for norms and biases too. `gem_learns`: so does GeM's exponent, which is 3 in AGW and
    at rates of SGD soon leaves the range in which powers are finite.

    Loss: cross entropy with label `smoothing` plus the "weighted" or "hard" triplet (`margin` is for "hard"), or CAJ's
    "squared" one. `clip` is the largest norm of the gradient; `precision` that of the forward pass, over float32 weights.
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
    schedule: Literal["cosine", "step", "epochs"] = "cosine"
    drops: tuple[float, ...] = (0.33, 0.83)
    triplet: Literal["weighted", "hard", "squared"] = "weighted"
    margin: float = 0.3
    smoothing: float = 0.1
    seed: int = 0
    synthetic_schedule: Points | None = None
    exchange_view: bool = False
    warmup_epochs: int = 10
    drop_epochs: tuple[int, ...] = (20, 50)
    decay_all: bool = False
    gem_learns: bool = True
    precision: Precision = "fp32"
    clip: float | None = None
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise InputError(f"give either steps or epochs, got steps {self.steps} and epochs {self.epochs}")
        if (self.steps or self.epochs or 0) < 1:
            raise InputError("steps or epochs must be at least 1")
        for name, values in (
            ("optimizer", ("adam", "sgd")),
            ("schedule", ("cosine", "step", "epochs")),
            ("triplet", ("weighted", "hard", "squared")),
            ("precision", ("fp32", "bf16", "fp16")),
        ):
            if getattr(self, name) not in values:
                raise InputError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if not (self.lr > 0 and 0 <= self.warmup < 1 and 0 <= self.smoothing < 1):
            raise InputError(f"lr must be above 0, warmup and smoothing within 0..1, got {self.lr}, {self.warmup}, "
                             f"{self.smoothing}")  # fmt: skip
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be above 0 (none: no clipping), got {self.clip}")
        if self.warmup_epochs < 0:
            raise InputError(f"warmup_epochs must be 0 or more, got {self.warmup_epochs}")
        if self.synthetic_schedule is not None:
            _check_schedule(self.synthetic_schedule, self.synthetic_share)


def _check_schedule(points: Points, share: float | None) -> None:
    if share is not None:
        raise InputError("give synthetic_share or synthetic_schedule, not both")
    parts = [part for part, _ in points]
    if not points or parts != sorted(parts) or not all(0 <= value <= 1 for point in points for value in point):
        raise InputError(
            f"synthetic_schedule is (part of the run, share) pairs within 0..1, parts rising, got {points}"
        )


def config_from_dict(data: Any, where: str) -> ReidConfig:
    """The config that `to_dict` made into JSON; absent fields have their defaults.

    Unknown ones raise `InputError` naming `where`.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    nested: dict[str, type] = {"model": ModelConfig, "augment": AugmentConfig, "validation": ValidationConfig}
    records: dict[str, Any] = {name: from_dict(cls, data[name], where) for name, cls in nested.items() if name in data}
    try:
        tuples: dict[str, Any] = {name: tuple(data[name]) for name in ("drops", "drop_epochs") if name in data}
        if data.get("synthetic_schedule") is not None:
            tuples["synthetic_schedule"] = tuple((part, share) for part, share in data["synthetic_schedule"])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{where}: drops, drop_epochs and synthetic_schedule are lists of numbers ({error})"
        ) from error
    return from_dict(ReidConfig, {**data, **records, **tuples}, where)


def learning_rate(step: int, total: int, config: ReidConfig, per_epoch: int = 1) -> float:
    """The factor on `lr` at `step` (from 0) of `total`; `per_epoch` steps are an epoch (schedule "epochs" alone asks)."""
    if config.schedule == "epochs":
        epoch = step // per_epoch
        if epoch < config.warmup_epochs:
            return (epoch + 1) / config.warmup_epochs
        return math.prod(0.1 for drop in config.drop_epochs if epoch >= drop)
    warmup = config.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return math.prod(0.1 for drop in config.drops if step >= drop * total)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))


def share_at(step: int, total: int, points: Points) -> float:
    """The share of synthetic identities at `step` (from 0) of `total`; the first and last points hold beyond them.

    The last step is at part 1 of the run. At a part that two points have, the later one holds.
    """
    part = step / max(1, total - 1)
    before = [point for point in points if point[0] <= part]
    after = [point for point in points if point[0] > part]
    if not before or not after:
        return (before[-1] if before else after[0])[1]
    (start, first), (end, last) = before[-1], after[0]
    return first + (last - first) * (part - start) / (end - start)
