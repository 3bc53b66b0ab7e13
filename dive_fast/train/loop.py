"""The training loop: batches by step, learning-rate schedule, moving average, logs, and states that resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dive_fast.data.files import read_plain
from dive_fast.distributed import leading
from dive_fast.io import atomic_encode, atomic_write, clear_disk_errors
from dive_fast.json_files import parse_json
from dive_fast.tensorboard import TensorBoardLog
from dive_fast.train.config import Precision, Scheduler, TrainConfig
from dive_fast.train.parallel import average_gradients, part_of_batch
from dive_fast.train.precision import autocast, loss_scaler
from dive_fast.training_state import copy_tensors, damaged_state, load_optimizer, read_state, step_of
from dive_fast.types import DiveError, InputError

_LARGEST_LOG = 1 << 30  # bytes

if TYPE_CHECKING:
    import torch


def batch_indices(count: int, batch: int, step: int, seed: int) -> np.ndarray:
    """Returns the indices int64 [batch] of a training step: a new permutation every epoch, a pure function of its arguments.

    A resumed run therefore continues the order of an uninterrupted one without a stored sampler.
    """
    epochs, places = np.divmod(np.arange(step * batch, (step + 1) * batch), count)
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(count) for epoch in set(epochs.tolist())}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs.tolist(), places, strict=True)])


def learning_rate(
    step: int, steps: int, peak: float, warmup: int, scheduler: Scheduler = "cosine", floor: float = 0.01
) -> float:
    """Returns the rate of a step: linear warm-up to `peak`, then constant or half a cosine down to `floor` x peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if scheduler == "constant":
        return peak
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


class MovingAverage:
    """Exponential moving average of parameters; its decay ramps up to forget early steps."""

    def __init__(self, parameters: Sequence[torch.nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.shadow = [p.detach().clone() for p in parameters]
        self.decay = decay

    def update(self, step: int) -> None:
        import torch

        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], weight)

    def swap(self) -> None:
        """Exchanges the parameters and their averages."""
        for parameter, shadow in zip(self.parameters, self.shadow, strict=True):
            value = parameter.detach().clone()
            parameter.data.copy_(shadow)
            shadow.copy_(value)


class LossLog:
    """Appends one JSON line per record; on resume, drops the lines from the resumed step on."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.path = path
        lines = read_plain(path, f"loss log {path}", _LARGEST_LOG).splitlines() if path.exists() else []
        atomic_write(path, b"".join(line + b"\n" for line in lines if _step_of(line) < resume_step))

    def add(self, step: int, **values: float) -> None:
        with clear_disk_errors(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")


def _step_of(line: bytes) -> float:
    """The step of a log line; infinity for a line that a kill left incomplete."""
    try:
        step = parse_json(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
    return step if isinstance(step, int) else math.inf


@dataclass(frozen=True)
class PhaseConfig:
    """One phase of a training: AdamW at `learning_rate`, gradients clipped to norm 1, an average of the weights.

    State and log are `work/<name>.state` and `work/<name>-loss.jsonl`. A state of another `identity` is refused.
    `average` 0 keeps no average. A batch is computed in `accumulate` parts.
    """

    name: str
    work: Path
    steps: int
    lr: float
    warmup: int
    save_every: int
    lr_scheduler: Scheduler = "cosine"
    betas: tuple[float, float] = (0.9, 0.99)
    average: float = 0.999
    identity: str = ""
    progress: bool = True
    accumulate: int = 1
    precision: Precision = "no"
    tensorboard: bool = False  # also log to `work/tensorboard/<name>`

    @classmethod
    def of(
        cls, config: TrainConfig, name: str, work: Path, steps: int, lr: float, run: str, progress: bool
    ) -> PhaseConfig:
        """Returns a phase with the settings that every training has."""
        return cls(
            name,
            work,
            steps,
            lr=lr,
            warmup=config.warmup,
            save_every=config.save_every,
            lr_scheduler=config.lr_scheduler,
            average=config.average,
            identity=run,
            progress=progress,
            accumulate=config.compute.accumulate,
            precision=config.compute.mixed_precision,
            tensorboard=config.tensorboard,
        )

    @property
    def state_path(self) -> Path:
        return self.work / f"{self.name}.state"

    def open_logs(self, resume_step: int) -> list[LossLog | TensorBoardLog]:
        logs: list[LossLog | TensorBoardLog] = [LossLog(self.work / f"{self.name}-loss.jsonl", resume_step)]
        if self.tensorboard:
            logs.append(TensorBoardLog(self.work / "tensorboard" / self.name, resume_step))
        return logs

    def saved_state(self) -> dict[str, Any] | None:
        """Returns the last state, None if there is none; one of another identity or of more steps raises `InputError`."""
        if not self.state_path.exists():
            return None
        state = read_state(self.state_path)
        if state.get("identity") != self.identity:
            raise InputError(f"{self.state_path} belongs to other data or settings; choose another folder or delete it")
        done = state.get("step")
        if isinstance(done, int) and done > self.steps:
            raise InputError(
                f"{self.state_path} has done {done:,} steps, and {self.steps:,} are asked for; ask for more, or delete it"
            )
        return state

    def steps_done(self) -> int:
        """Returns the steps of the last state; raises as `saved_state`, and for a damaged one."""
        state = self.saved_state()
        if state is None:
            return 0
        with damaged_state(self.state_path):
            return step_of(state, self.steps)


Loss: TypeAlias = "tuple[torch.Tensor, dict[str, torch.Tensor]]"
"""A loss, and further numbers to log."""
LossAt = Callable[[int], Loss]
"""The loss of a step, a function of the step alone."""


class TrainState:
    """Trained parameters with their optimizer, average and loss scale; reads and writes no file.

    `groups` are AdamW's, each with an optional `lr_scale` on the phase's rate. `clip` are the parameters whose
    gradients are clipped together, by default all.
    """

    def __init__(
        self,
        config: PhaseConfig,
        groups: Sequence[dict[str, Any]],
        loss_at: LossAt,
        clip: Sequence[torch.nn.Parameter] | None = None,
    ) -> None:
        import torch

        self.config, self.loss_at = config, loss_at
        self.parameters: list[torch.nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.clip = self.parameters if clip is None else clip
        self.device = self.parameters[0].device
        if self.device.type == "cuda":
            # TF32 rounds far below a batch's noise, and all steps have equal shapes
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        scaled = [{"lr_scale": 1.0, **group} for group in groups]
        self.optimizer = torch.optim.AdamW(scaled, lr=config.lr, betas=config.betas, fused=True)
        self.average = MovingAverage(self.parameters, config.average) if config.average else None
        self.scaler = loss_scaler(config.precision, self.device)

    def step(self, step: int) -> Loss:
        """Takes step number `step`; returns the loss over all ranks and this rank's further numbers."""
        import torch

        config = self.config
        rate = learning_rate(step, config.steps, config.lr, config.warmup, config.lr_scheduler)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss, numbers = self._backward(step)
        loss = average_gradients(self.parameters, loss)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.clip, 1.0)
        self.scaler.step(self.optimizer)  # a gradient that overflows does so on every rank: all skip the step
        self.scaler.update()
        if self.average is not None:
            self.average.update(step)
        return loss, numbers

    def _backward(self, step: int) -> Loss:
        """Sums the scaled gradients of the batch's parts; returns the means of loss and numbers."""
        parts = self.config.accumulate
        losses: list[torch.Tensor] = []
        sums: dict[str, torch.Tensor] = {}
        for part in range(parts):
            with part_of_batch(part, parts), autocast(self.config.precision, self.device):
                loss, numbers = self.loss_at(step)
            loss = loss / parts
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            sums = {name: value / parts + sums.get(name, 0) for name, value in numbers.items()}
        if self.scaler.is_enabled():
            sums["scale"] = losses[0].new_tensor(self.scaler.get_scale())
        return sum(losses[1:], losses[0]), sums

    def swap_average(self) -> None:
        """Exchanges the parameters and their averages, if the phase keeps averages."""
        if self.average is not None:
            self.average.swap()

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "average": [] if self.average is None else self.average.shadow,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state`; raises an error of any kind for one of another training."""
        copy_tensors(self.parameters, state["parameters"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None:
            copy_tensors(self.average.shadow, state["average"])
        self.scaler.load_state_dict(state["scaler"])


@dataclass(frozen=True)
class Callback:
    """Calls `run(steps done)` every `every` steps, while the parameters hold their average."""

    every: int
    run: Callable[[int], None]


def run_phase(
    config: PhaseConfig,
    groups: Sequence[dict[str, Any]],
    loss_at: LossAt,
    clip: Sequence[torch.nn.Parameter] | None = None,
    callback: Callback | None = None,
) -> None:
    """Trains the parameters of `groups` in place and leaves their moving average in them; resumes from the saved state.

    Arguments as of `TrainState`. With ranks or parts, `loss_at` returns the loss of the `my_rows` of a step's batch. The
    first rank writes state and log, and runs the callback.
    """
    import torch

    from dive_fast.progress import ProgressBar

    train = TrainState(config, groups, loss_at, clip)
    saved, first = config.saved_state(), 0
    if saved is not None:
        with damaged_state(config.state_path):
            train.load_state_dict(saved)
            first = step_of(saved, config.steps)
    leads = leading()
    logs = config.open_logs(first) if leads else []
    hidden = not (config.progress and leads)
    steps = range(first, config.steps)
    bar = ProgressBar(steps, initial=first, total=config.steps, desc=config.name, unit="step", disable=hidden)
    for step in bar:
        loss, numbers = train.step(step)
        saves = (step + 1) % config.save_every == 0 or step + 1 == config.steps
        if (step % 10 == 0 or saves) and not math.isfinite(value := loss.item()):  # reading a loss waits for the GPU
            raise DiveError(
                f"{config.name}: the loss is {value} at step {step}; lower the learning rate and resume from the last state"
            )
        if step % 10 == 0:
            for log in logs:
                log.add(step, loss=loss.item(), **{name: float(value) for name, value in numbers.items()})
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if leads and saves:
            state = {"step": step + 1, "identity": config.identity, **train.state_dict()}
            atomic_encode(config.state_path, partial(torch.save, state))
        if leads and callback is not None and (step + 1) % callback.every == 0:
            train.swap_average()
            callback.run(step + 1)
            train.swap_average()
    train.swap_average()
