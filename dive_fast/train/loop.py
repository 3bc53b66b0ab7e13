"""What every training loop here needs: batches by step, a learning-rate curve, moving averages, state that resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.io import atomic_path
from dive_fast.train.parallel import average_gradients, leading
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


@dataclass(frozen=True)
class Stage:
    """How a training loop runs: AdamW with warm-up and cosine, gradients clipped to norm 1, an average of the weights.

    State and log are `work/<name>.state` and `work/<name>-loss.jsonl`. A state of another `identity` is not resumed.
    """

    name: str
    work: Path
    steps: int
    lr: float
    warmup: int
    save_every: int
    betas: tuple[float, float] = (0.9, 0.99)
    average: float = 0.999
    identity: str = ""
    progress: bool = True

    @property
    def state_path(self) -> Path:
        return self.work / f"{self.name}.state"

    def saved(self) -> dict[str, Any] | None:
        """The last state, None if there is none; one of another identity raises `InputError`."""
        if not self.state_path.exists():
            return None
        state = load_state(self.state_path)
        if state.get("identity") != self.identity:
            raise InputError(f"{self.state_path} belongs to other data or settings; choose another folder or delete it")
        return state


LossAt = Callable[[int], "tuple[torch.Tensor, dict[str, torch.Tensor]]"]


def adamw(groups: Sequence[dict[str, Any]], stage: Stage) -> torch.optim.Optimizer:
    """AdamW over parameter groups; a group's `lr_scale` (1 by default) is its share of the stage's rate."""
    import torch

    weighted = [{"lr_scale": 1.0, **group} for group in groups]
    return torch.optim.AdamW(weighted, lr=stage.lr, betas=stage.betas, fused=True)


def run_stage(
    stage: Stage, groups: Sequence[dict[str, Any]], loss_at: LossAt, clip: Sequence[torch.nn.Parameter] | None = None
) -> None:
    """Trains the parameters of `groups` in place and leaves the moving average of their values in them.

    `loss_at(step)` gives the loss and further numbers to log, as a function of the step alone, so that a resumed run
    equals an undisturbed one. `clip` are the parameters whose gradients are clipped together, by default all. In a
    process group `loss_at` gives the loss of `my_rows` of the step's batch, and the first rank writes state and log.
    """
    import torch
    from tqdm import tqdm

    parameters = [parameter for group in groups for parameter in group["params"]]
    if parameters[0].is_cuda:  # rounding to TF32 is far below a batch's noise, and every step has the same shapes
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    optimizer = adamw(groups, stage)
    average = MovingAverage(parameters, stage.average)
    state, first = stage.saved(), 0
    if state is not None:
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        torch._foreach_copy_(average.shadow, state["average"])
        first = state["step"]
    leads = leading()
    log = LossLog(stage.work / f"{stage.name}-loss.jsonl", first) if leads else None
    bar = tqdm(
        range(first, stage.steps), initial=first, total=stage.steps, desc=stage.name, unit="step",
        disable=not (stage.progress and leads),
    )  # fmt: skip
    for step in bar:
        rate = cosine_lr(step, stage.steps, stage.lr, stage.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        loss, numbers = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = average_gradients(parameters, loss)
        saves = (step + 1) % stage.save_every == 0 or step + 1 == stage.steps
        if step % 10 == 0 or saves:  # not at every step: reading a loss waits for the GPU
            check_finite(loss.item(), step, stage.name)
        torch.nn.utils.clip_grad_norm_(parameters if clip is None else clip, 1.0)
        optimizer.step()
        average.update(step)
        if log is not None and step % 10 == 0:
            log.add(step, loss=loss.item(), **{name: float(value) for name, value in numbers.items()})
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if leads and saves:
            save_state(
                stage.state_path,
                {"step": step + 1, "identity": stage.identity, "parameters": [p.detach() for p in parameters],
                 "optimizer": optimizer.state_dict(), "average": average.shadow},
            )  # fmt: skip
    average.copy_to_parameters()
