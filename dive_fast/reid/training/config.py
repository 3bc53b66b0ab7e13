"""Settings of a ReID training, and what follows from them alone: the learning rate and the synthetic fraction of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dive_fast.reid.data.config import AugmentConfig, Missing
from dive_fast.reid.models.config import ModelConfig
from dive_fast.settings import (
    AtLeast,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Part,
    PositiveFloat,
    PositiveInt,
    Reads,
    Settings,
)
from dive_fast.types import InputError, from_dict, shown

Precision = Literal["fp32", "bf16", "fp16"]
Points = tuple[tuple[float, float], ...]


def _points(text: str) -> Points:
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return tuple((float(part), float(share)) for part, share in pairs)
    except ValueError as error:
        raise InputError(f"must be PART:SHARE pairs, as 0:0.5,1:0, got {shown(text)}") from error


@dataclass(frozen=True)
class ValidationConfig(Settings):
    """The identities that the best weights are chosen on, and how often the weights are scored.

    With neither `every_steps` nor `every_epochs` the weights are scored every epoch. They are always scored at the end.
    """

    people: NonNegativeInt = 0
    """Identities with real images of both modalities to hold out of training for validation; 0: none."""
    split: int = 0
    """Seed of the choice of these identities; equal for runs that are compared, whatever their own seeds."""
    every_steps: PositiveInt | None = None
    """Steps between validations."""
    every_epochs: PositiveInt | None = None
    """Epochs between validations; by default 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.people == 1:
            raise InputError("validation people must be 0 (no validation) or at least 2, got 1")
        if self.every_steps is not None and self.every_epochs is not None:
            raise InputError(f"give every_steps {self.every_steps} or every_epochs {self.every_epochs}, not both")


@dataclass(frozen=True)
class ReidConfig(Settings):
    """A training recipe; the default is tuned for the pocket world (128x64 images, about 200 identities, one CPU thread).

    A batch holds `identities` x (`per_modality` visible + as many infrared) images. The rate `lr` follows `schedule`:

    - "cosine" and "step" rise linearly over the first `warmup` of the run; then "cosine" falls to 0, and "step" falls
      tenfold at each of the `drops`.
    - "epochs" changes between epochs only: it rises over `warmup_epochs`, then falls tenfold after each of `drop_epochs`.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of the images."""
    identities: Annotated[int, AtLeast(2)] = 8
    """Identities a batch."""
    per_modality: PositiveInt = 3
    """Visible images, and infrared ones, per identity in a batch."""
    missing: Missing = "refuse"
    """Identities without infrared images: refuse raises an error, drop leaves them out, visible takes visible ones only."""
    synthetic_fraction: Fraction | None = None
    """Fraction of a batch's identities that are synthetic (in compare: that not every arm has)."""
    steps: PositiveInt | None = 500
    """Training steps."""
    epochs: PositiveInt | None = None
    """Epochs instead of steps; one sees as many images as the larger modality has."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer: AdamW, or SGD with Nesterov's momentum 0.9."""
    lr: PositiveFloat = 2e-3
    """Peak learning rate."""
    backbone_lr: NonNegativeFloat = 1.0
    """Factor on the learning rate of stems and trunk."""
    weight_decay: NonNegativeFloat = 5e-4
    """Weight decay."""
    warmup: Fraction = 0.1
    """Fraction of the run over which the learning rate rises."""
    schedule: Literal["cosine", "step", "epochs"] = "cosine"
    """How the learning rate falls: along a cosine, tenfold at drops, or tenfold after drop_epochs."""
    drops: tuple[float, ...] = (0.33, 0.83)
    """Fractions of the run at which schedule step lowers the learning rate tenfold."""
    triplet: Literal["weighted", "hard", "squared"] = "weighted"
    """Triplet loss: AGW's weighted one, batch-hard with a margin, or CAJ's squared difference."""
    margin: float = 0.3
    """Margin of the hard triplet loss."""
    smoothing: Fraction = 0.1
    """Label smoothing of the cross entropy."""
    seed: NonNegativeInt = 0
    """Seed of everything random."""
    synthetic_schedule: Annotated[Points, Reads(_points, "PART:SHARE,...")] | None = None
    """synthetic_fraction over the run: (fraction of the run, share) pairs, linear between; equal fractions make a step."""
    exchange_view: bool = False
    """Add every visible image of a batch a second time, with one channel in all three (CAJ)."""
    warmup_epochs: NonNegativeInt = 10
    """Epochs over which schedule epochs raises the learning rate."""
    drop_epochs: tuple[int, ...] = (20, 50)
    """Epochs after which schedule epochs lowers the learning rate tenfold."""
    decay_all: bool = False
    """Apply the weight decay to norms and biases too."""
    gem_learns: bool = True
    """Train GeM's exponent; AGW keeps it at 3, and SGD at AGW's rates drives it out of the finite range."""
    precision: Precision = "fp32"
    """Precision of the forward pass; weights stay fp32."""
    clip: PositiveFloat | None = None
    """Largest norm of the gradient; none: no clipping."""
    validation: Annotated[ValidationConfig, Part("validation")] = field(default_factory=ValidationConfig)
    """Identities that the best weights are chosen on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup", "smoothing"):
            if getattr(self, name) == 1:
                raise InputError(f"{name} must be below 1, got 1")
        if (self.steps is None) == (self.epochs is None):
            raise InputError(f"give either steps or epochs, got steps {self.steps} and epochs {self.epochs}")
        points = self.synthetic_schedule
        if points is None:
            return
        if self.synthetic_fraction is not None:
            raise InputError(
                f"give synthetic_fraction {self.synthetic_fraction} or synthetic_schedule {points}, not both"
            )
        parts = [part for part, _ in points]
        if not points or parts != sorted(parts) or not all(0 <= value <= 1 for point in points for value in point):
            raise InputError(f"synthetic_schedule needs pairs within 0..1 whose first values rise, got {points}")


def config_from_dict(data: Any, where: str) -> ReidConfig:
    """Returns the config of a JSON object that `to_dict` made; absent fields have their defaults.

    Raises `InputError` naming `where` for unknown fields and for values that a field does not allow.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    nested: dict[str, type] = {"model": ModelConfig, "augment": AugmentConfig, "validation": ValidationConfig}
    parts: dict[str, Any] = {name: from_dict(cls, data[name], where) for name, cls in nested.items() if name in data}
    return from_dict(ReidConfig, {**{name: tuples(value) for name, value in data.items()}, **parts}, where)


def tuples(value: Any) -> Any:
    """Returns a JSON value with its lists as tuples."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def learning_rate(step: int, total: int, config: ReidConfig, per_epoch: int = 1) -> float:
    """Returns the factor on `lr` at `step` (from 0) of `total`; `per_epoch` steps are an epoch (schedule "epochs" only)."""
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


def scheduled_fraction(step: int, total: int, points: Points) -> float:
    """Returns the fraction of synthetic identities at `step` (from 0) of `total`; the outer points hold beyond them.

    The last step is at 1. Where two points have the same first value, the later one holds.
    """
    part = step / max(1, total - 1)
    before = [point for point in points if point[0] <= part]
    after = [point for point in points if point[0] > part]
    if not before or not after:
        return (before[-1] if before else after[0])[1]
    (start, first), (end, last) = before[-1], after[0]
    return first + (last - first) * (part - start) / (end - start)
