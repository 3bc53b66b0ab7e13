"""What every training loop here needs: batches by step, a learning-rate curve, moving averages, state that resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.io import atomic_path
from dive_fast.types import DiveError, InputError

if TYPE_CHECKING:
    import torch


def batch_indices(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Indices [batch] of training step `step`: a new permutation an epoch, a pure function of its arguments.

    A resumed run therefore continues the very order of an undisturbed one, without storing a sampler.
    """
    start = step * batch
    out = np.empty(batch, dtype=np.int64)
    filled = 0
    while filled < batch:
        epoch, offset = divmod(start + filled, count)
        order = np.random.default_rng([seed, epoch]).permutation(count)
        take = min(batch - filled, count - offset)
        out[filled : filled + take] = order[offset : offset + take]
        filled += take
    return out


def cosine_lr(step: int, steps: int, peak: float, warmup: int, floor: float = 0.01) -> float:
    """Linear warm-up to `peak`, then half a cosine down to `floor` x peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


class MovingAverage:
    """Exponential moving average of parameters, its decay ramped up so that early steps are forgotten."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.shadow = [p.detach().clone() for p in self.parameters]
        self.decay = decay

    def update(self, step: int) -> None:
        import torch

        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], weight)

    def copy_to_parameters(self) -> None:
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            parameter.data.copy_(shadow)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a training state (tensors, numbers, optimizer dicts) whole or not at all."""
    import torch

    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a training state without unpickling code; a broken file raises `InputError` with the remedy."""
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"training state {path} cannot be read ({error}); delete it to start this stage anew"
        ) from error


class LossLog:
    """Appends one JSON line a record; on resume, lines at or after the resumed step are dropped."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        kept: list[str] = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) < resume_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def add(self, step: int, **values: float) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")


def _step_of(line: str) -> float:
    """The step of a log line; a line torn by a kill counts as the future, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf


def check_finite(loss: float, step: int, what: str) -> None:
    """Raises `DiveError` when a loss is NaN or infinite: training on would only hide it."""
    if not math.isfinite(loss):
        raise DiveError(
            f"{what}: the loss is {loss} at step {step}; lower the learning rate and resume from the last state"
        )
