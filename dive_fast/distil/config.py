"""The settings of `dive-fast distil`. Importing them loads neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dive_fast.sampling.config import DenoisingSteps
from dive_fast.settings import NonNegativeFloat, NonNegativeInt, Part, PositiveInt, Within
from dive_fast.train.config import Compute, TrainConfig
from dive_fast.types import InputError


@dataclass(frozen=True)
class LearnerConfig(TrainConfig):
    """What the settings of both distillations have."""

    lr: NonNegativeFloat = 1e-3
    """Peak learning rate."""


@dataclass(frozen=True)
class DistilConfig(LearnerConfig):
    """How a student is distilled. The defaults suit the pocket model."""

    student_steps: Annotated[int, Within(1, 50)] = 4
    """Steps of the student, each one pass without guidance; 2, 4 or 8."""
    guidance: NonNegativeFloat | None = None
    """Guidance scale that the student has built in; by default the model's own."""
    teacher_steps: DenoisingSteps = 16
    """Steps of the teacher, a multiple of --student-steps; each is two passes, with guidance."""
    trajectories: PositiveInt = 4096
    """Number of the teacher's images to learn from; their prompts are the model's people by its cameras, in turn."""
    states: Literal["own", "teacher"] = "own"
    """Where each step of the student starts in training: at the student's own state, from which it must return to the
    teacher's trajectory, or at the teacher's."""
    steps: PositiveInt = 1000
    batch: PositiveInt = 16
    """Trajectories per training step."""
    rank: PositiveInt = 32
    """Rank of the LoRA on all of the UNet's layers, which is added to the weights at the end."""
    sheet_every: NonNegativeInt = 0
    """Steps between sheets of images of teacher and student, written as PNG files beside the loss log; 0 writes none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_steps % self.student_steps:
            raise InputError(
                f"--teacher-steps {self.teacher_steps} is no multiple of --student-steps {self.student_steps}, whose"
                " states the teacher must pass through"
            )


@dataclass(frozen=True)
class DecoderConfig(LearnerConfig):
    """How a tiny decoder is distilled."""

    width: Annotated[int, Within(0, 512)] = 64
    """Channels of its layers, as in TAESD; 0 is one convolution of the latents, which suits the pocket model."""
    images: PositiveInt = 1024
    """Number of the model's images to learn from, sampled as the model samples."""
    steps: PositiveInt = 4000
    batch: PositiveInt = 8
    """Images per training step."""
    compute: Annotated[Compute, Part(skip=("checkpointing",))] = TrainConfig.compute
