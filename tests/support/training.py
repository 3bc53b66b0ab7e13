"""Trainings that stop at a chosen step, and gradients of a first one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from dive_fast.models import load_bundle
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.loop import TrainState
from dive_fast.train.model import PersonalizedModel
from dive_fast.train.prior import ClassPhotos, prompt_ids
from dive_fast.train.trainer import Phase, Trainer, phase_configs
from dive_fast.types import Sample


@contextmanager
def interrupted(when: Callable[[PersonalizedModel, int], object]) -> Iterator[None]:
    """Interrupts a personalization in the block at a step where `when(model, step)` is true, as Ctrl-C does."""
    real = PersonalizedModel.loss

    def loss(self: PersonalizedModel, step: int, *args: Any) -> Any:
        if when(self, step):
            raise KeyboardInterrupt
        return real(self, step, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PersonalizedModel, "loss", loss)
        yield


def interrupted_call(function: Callable[..., Any], number: int) -> Callable[..., Any]:
    """`function`, whose call number `number`, counted from 0, is interrupted as by Ctrl-C."""
    numbers = count()

    def called(*arguments: Any, **options: Any) -> Any:
        if next(numbers) == number:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    return called


def first_phase(
    base: Path, photos: Sequence[Sample], config: PersonalizeConfig, work: Path, class_latents: torch.Tensor | None
) -> tuple[Trainer, Phase]:
    """A trainer on a CPU, and its only phase."""
    trainer = Trainer(load_bundle(base), photos, config, None, "cpu", False)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainer.model.lora:  # B starts at zero, and would leave A without a gradient
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    class_ids = prompt_ids(trainer.bundle, config.prior.prior_prompt)
    class_photos = None if class_latents is None else ClassPhotos(class_latents, class_ids)
    (phase,) = trainer.phases(phase_configs(config, work, "", False), trainer.encode(photos, False), class_photos)
    return trainer, phase


def first_gradients(trainer: Trainer, phase: Phase) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """The gradients [rows] and [LoRA] of the first step, and its numbers."""
    _, numbers = TrainState(phase.config, trainer.model.groups, phase.loss_at, clip=[]).step(0)
    lora = torch.cat([p.grad.flatten() for p in trainer.model.lora if p.grad is not None])
    assert trainer.model.rows.free.grad is not None
    return trainer.model.rows.free.grad.flatten(), lora, numbers
