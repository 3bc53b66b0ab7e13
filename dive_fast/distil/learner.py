"""What a distillation does with what its model made, whatever it distils: the training on it, and the forecast of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dive_fast.distil.trajectories import HELD_OUT
from dive_fast.train.dryrun import Forecast, measure
from dive_fast.train.loop import Callback, Loss, TrainState, batch_indices, run_phase
from dive_fast.train.memory import tensor_bytes
from dive_fast.train.parallel import my_rows
from dive_fast.train.run import Run

if TYPE_CHECKING:
    import torch

    from dive_fast.distil.blocks import Blocks, Rows
    from dive_fast.distil.config import LearnerConfig


class Learner(ABC):
    """What learns from `blocks`, whose last `HELD_OUT` rows measure it, in batches drawn by the seed `order`."""

    config: LearnerConfig
    blocks: Blocks
    order: int
    prompts: int  # of all rows
    networks: list[torch.nn.Module]  # what lies on the device while it trains
    examples: ClassVar[str]
    making: ClassVar[str]

    @abstractmethod
    def parameters(self) -> list[torch.nn.Parameter]:
        """Returns what is trained, once; the model makes no more rows afterwards."""

    @abstractmethod
    def error(self, made: Rows, positions: Sequence[int]) -> Loss:
        """Returns the loss of these rows, and further numbers to log."""

    @abstractmethod
    def disk_bytes(self) -> int:
        """Returns the bytes that a run writes at most."""

    @property
    def held(self) -> range:
        """The rows that no step sees."""
        return range(self.blocks.count - HELD_OUT, self.blocks.count)

    def rows(self, step: int) -> list[int]:
        """Returns this process's rows of a step's batch."""
        batch = batch_indices(self.held.start, self.config.batch, step, self.order)
        return [int(row) for row in batch[my_rows(self.config.batch)]]

    def loss(self, step: int, made: Rows) -> Loss:
        """Returns the error of this process's rows of a step."""
        return self.error(made, self.rows(step))

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": self.parameters(), "weight_decay": 0.0}]

    def learn(self, run: Run, made: Rows, callback: Callback | None = None) -> None:
        """Trains from the last saved state on."""
        run_phase(run.phases[0], self.groups(), lambda step: self.loss(step, made), callback=callback)


def forecast(run: Run, begin: Callable[[], Learner], device: str) -> Forecast:
    """Estimates the cost of the run of the learner that `begin` returns, from a few rows and steps; writes nothing.

    Raises what the run raises before any work.
    """
    (done,), finished, learner = run.steps_done(), run.finished(), begin()
    blocks, disk_bytes = learner.blocks, learner.disk_bytes()
    run.check_disk(disk_bytes)
    made, few, seconds = blocks.timed(learner.config.batch)
    groups = learner.groups()
    state = TrainState(
        run.phases[0], groups, lambda step: learner.error(made, [row % few for row in learner.rows(step)])
    )
    return Forecast(
        examples=learner.examples,
        about=(f"{blocks.count:,} {learner.examples} over {learner.prompts:,} prompts",),
        numbers={learner.examples: blocks.count, "prompts": learner.prompts},
        batch=learner.config.batch,
        stages=(measure(state, done),),
        weights_bytes=tensor_bytes(learner.networks),
        data_bytes=blocks.nbytes,
        data_seconds=0.0 if finished else seconds * blocks.missing(run.work),
        making=learner.making,
        disk_bytes=disk_bytes,
        device=device,
    )
