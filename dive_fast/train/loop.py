"""What every training loop here needs: batches by step, a learning-rate curve, moving averages, state that resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.distributed import leading
from dive_fast.io import atomic_path, atomic_write
from dive_fast.tensorboard import TensorBoardLog
from dive_fast.train.config import Precision
from dive_fast.train.parallel import average_gradients, part_of_batch
from dive_fast.train.precision import autocast, loss_scaler
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

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block, the parameters hold their averages."""
        kept = [p.detach().clone() for p in self.parameters]
        self.copy_to_parameters()
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, kept, strict=True):
                parameter.data.copy_(value)


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
        atomic_write(path, "".join(line + "\n" for line in kept))

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
    `average` 0 keeps no average. A step's batch is worked through in `accumulate` parts, one in memory at a time.
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
    accumulate: int = 1
    precision: Precision = "no"
    tensorboard: bool = False  # also log to `work/tensorboard/<name>`

    @property
    def state_path(self) -> Path:
        return self.work / f"{self.name}.state"

    @property
    def log_path(self) -> Path:
        return self.work / f"{self.name}-loss.jsonl"

    def logs(self, resume_step: int) -> list[LossLog | TensorBoardLog]:
        """Opens the stage's logs, from `resume_step` on."""
        logs: list[LossLog | TensorBoardLog] = [LossLog(self.log_path, resume_step)]
        if self.tensorboard:
            logs.append(TensorBoardLog(self.work / "tensorboard" / self.name, resume_step))
        return logs

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


class Trainer:
    """A stage under way: what learns, with its optimizer, average and loss scale, moved a step at a time.

    Arguments as of `run_stage`. Nothing is read or written.
    """

    def __init__(
        self, stage: Stage, groups: Sequence[dict[str, Any]], loss_at: LossAt,
        clip: Sequence[torch.nn.Parameter] | None = None,
    ) -> None:  # fmt: skip
        import torch

        self.stage, self.loss_at = stage, loss_at
        self.parameters: list[torch.nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        self.clip = self.parameters if clip is None else clip
        self.device = self.parameters[0].device
        if self.device.type == "cuda":
            # rounding to TF32 is far below a batch's noise, and every step has the same shapes
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.benchmark = True
        self.optimizer = adamw(groups, stage)
        self.average = MovingAverage(self.parameters, stage.average) if stage.average else None
        self.scaler = loss_scaler(stage.precision, self.device)

    def step(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Does step number `step`; gives its loss and further numbers, of all ranks' rows and this rank's."""
        import torch

        rate = cosine_lr(step, self.stage.steps, self.stage.lr, self.stage.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        loss, numbers = self._backward(step)
        loss = average_gradients(self.parameters, loss)
        if self.scaler is None:
            torch.nn.utils.clip_grad_norm_(self.clip, 1.0)
            self.optimizer.step()
        else:  # a gradient that is not finite is so on every rank: all leave the step out and lower the scale
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.clip, 1.0)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update(step)
        return loss, numbers

    def _backward(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Sums up the gradients of the step's parts, scaled if there is a scale; the mean of loss and numbers."""
        parts = self.stage.accumulate
        losses: list[torch.Tensor] = []
        sums: dict[str, torch.Tensor] = {}
        for part in range(parts):
            with part_of_batch(part, parts), autocast(self.stage.precision, self.device):
                loss, numbers = self.loss_at(step)
            share = loss / parts
            (share if self.scaler is None else self.scaler.scale(share)).backward()
            losses.append(share.detach())
            sums = {name: value / parts + sums.get(name, 0) for name, value in numbers.items()}
        if self.scaler is not None:
            sums["scale"] = losses[0].new_tensor(self.scaler.get_scale())
        return sum(losses[1:], losses[0]), sums

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from, tensors and numbers."""
        return {
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "average": [] if self.average is None else self.average.shadow,
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            torch._foreach_copy_(self.average.shadow, state["average"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])

    def averaged(self) -> AbstractContextManager[None]:
        """Within the block, the parameters are as they would be left if the stage ended here."""
        return nullcontext() if self.average is None else self.average.in_place()


@dataclass(frozen=True)
class Watch:
    """Something to look at every so many steps: `look(steps done)`, while what learns holds its average."""

    every: int
    look: Callable[[int], None]


def run_stage(
    stage: Stage, groups: Sequence[dict[str, Any]], loss_at: LossAt, clip: Sequence[torch.nn.Parameter] | None = None,
    watch: Watch | None = None,
) -> None:  # fmt: skip
    """Trains the parameters of `groups` in place and leaves the moving average of their values in them.

    `loss_at(step)` gives the loss and further numbers to log, as a function of the step alone, so that a resumed run
    equals an undisturbed one. `clip` are the parameters whose gradients are clipped together, by default all. In a
    process group, and in parts, `loss_at` gives the loss of `my_rows` of the step's batch; the first rank writes state
    and log, and watches.
    """
    from tqdm import tqdm

    trainer = Trainer(stage, groups, loss_at, clip)
    state, first = stage.saved(), 0
    if state is not None:
        trainer.restore(state)
        first = state["step"]
    leads = leading()
    logs = stage.logs(first) if leads else []
    bar = tqdm(
        range(first, stage.steps), initial=first, total=stage.steps, desc=stage.name, unit="step",
        disable=not (stage.progress and leads),
    )  # fmt: skip
    for step in bar:
        loss, numbers = trainer.step(step)
        saves = (step + 1) % stage.save_every == 0 or step + 1 == stage.steps
        if step % 10 == 0 or saves:  # not at every step: reading a loss waits for the GPU
            check_finite(loss.item(), step, stage.name)
        if step % 10 == 0:
            for log in logs:
                log.add(step, loss=loss.item(), **{name: float(value) for name, value in numbers.items()})
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if leads and saves:
            save_state(stage.state_path, {"step": step + 1, "identity": stage.identity, **trainer.state()})
        if leads and watch is not None and (step + 1) % watch.every == 0:
            with trainer.averaged():
                watch.look(step + 1)
    if trainer.average is not None:
        trainer.average.copy_to_parameters()
