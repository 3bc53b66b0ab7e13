"""What a distillation does with what its model made, whatever it distils: the training on it, and the forecast of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dive_fast.distil.blocks import Blocks
from dive_fast.distil.trajectories import HELD_OUT
from dive_fast.train.forecast import Forecast, measure
from dive_fast.train.loop import Callback, Loss, PhaseConfig, TrainState, batch_indices, run_phase
from dive_fast.train.memory import tensor_bytes
from dive_fast.train.parallel import my_rows
from dive_fast.train.run import Run, check_disk, training_folder

if TYPE_CHECKING:
    import torch

    from dive_fast.distil.config import LearnerConfig
    from dive_fast.models.bundle import ModelBundle
    from dive_fast.models.student import Student
    from dive_fast.models.tiny_decoder import TinyDecoder

T = TypeVar("T")
R = TypeVar("R", "Student", "TinyDecoder")


class Learner(ABC, Generic[T]):
    """What learns from `blocks`, whose last `HELD_OUT` rows measure it; `T` is what it reads their tensors as.

    `prompts` is the number of prompts in `blocks`, and `order` the seed of the batches.
    """

    bundle: ModelBundle
    config: LearnerConfig
    blocks: Blocks
    prompts: int
    order: int

    @abstractmethod
    def read(self, made: Mapping[str, torch.Tensor]) -> T:
        """Returns rows of `blocks` as `error` takes them."""

    @abstractmethod
    def parameters(self) -> list[torch.nn.Parameter]:
        """Returns what is trained, once; the model makes no more rows afterwards."""

    @abstractmethod
    def error(self, data: T, positions: Sequence[int]) -> Loss:
        """Returns the loss of these rows, and further numbers to log."""

    @abstractmethod
    def networks(self) -> list[torch.nn.Module]:
        """Returns what lies on the device while it trains."""

    @abstractmethod
    def disk_bytes(self) -> int:
        """Returns the bytes that a run writes at most."""

    @property
    def held(self) -> range:
        """The rows that no step sees."""
        return range(self.blocks.count - HELD_OUT, self.blocks.count)

    def rows(self, step: int) -> list[int]:
        """Returns this process's rows of a step's batch."""
        batch = batch_indices(self.blocks.count - HELD_OUT, self.config.batch, step, self.order)
        rows: list[int] = batch[my_rows(self.config.batch)].tolist()
        return rows

    def loss(self, step: int, data: T) -> Loss:
        """Returns the error of this process's rows of a step."""
        return self.error(data, self.rows(step))

    def learn(self, run: Run, data: T, callback: Callback | None = None) -> None:
        """Trains from the last saved state on."""
        (phase,) = run.phases
        run_phase(phase, self._groups(), lambda step: self.loss(step, data), callback=callback)

    def _groups(self) -> list[dict[str, Any]]:
        return [{"params": self.parameters(), "weight_decay": 0.0}]


@dataclass(frozen=True)
class MadeForecast(Forecast):
    """A dry run of a distillation: over `made` examples, of `prompts` prompts."""

    prompts: int
    made: int

    def about(self) -> list[str]:
        return [f"{self.made:,} {self.examples} over {self.prompts:,} prompts"]


def begin_run(
    out: Path, run: str, name: str, config: LearnerConfig, record: str, read: Callable[[Path], R], progress: bool
) -> Run:
    """Returns the run `run` of one phase `name`, whose result has the file `record`, which `read` reads."""
    phase = PhaseConfig.of(config, name, training_folder(out), config.steps, config.lr, run, progress)
    return Run(out, run, record, lambda folder: read(folder).metadata, (phase,))


def forecast(kind: type[MadeForecast], run: Run, begin: Callable[[], Learner[T]], device: str) -> MadeForecast:
    """Estimates the cost of the run of the learner that `begin` returns, from a few rows and steps; writes nothing.

    Raises what the run raises before any work.
    """
    (done,), finished, learner = run.steps_done(), run.finished(), begin()
    blocks, disk_bytes = learner.blocks, learner.disk_bytes()
    check_disk(disk_bytes, run.out)
    made, seconds = blocks.timed(learner.config.batch)
    data, few = learner.read(made), len(next(iter(made.values())))
    (phase,) = run.phases
    groups = learner._groups()
    state = TrainState(phase, groups, lambda step: learner.error(data, [row % few for row in learner.rows(step)]))
    return kind(
        batch=learner.config.batch,
        stages=(measure(state, done),),
        weights_bytes=tensor_bytes(learner.networks()),
        data_bytes=blocks.nbytes,
        data_seconds=0.0 if finished else seconds * blocks.missing(run.work),
        disk_bytes=disk_bytes,
        device=device,
        prompts=learner.prompts,
        made=blocks.count,
    )
