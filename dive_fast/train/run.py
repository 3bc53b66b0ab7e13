"""One run of a training: the checks before it, where it writes, what it resumes from, how its result takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from dive_fast.data.prepare import check_space
from dive_fast.distributed import check_device, check_launcher, first_rank_first, leading
from dive_fast.io import clear_disk_errors, clear_leftovers, locked
from dive_fast.json_files import read_json
from dive_fast.outputs import check_place, holds
from dive_fast.tensorboard import require_tensorboard
from dive_fast.train.config import Compute, TrainConfig
from dive_fast.train.curves import Curve
from dive_fast.train.loop import PhaseConfig
from dive_fast.train.parallel import my_rows, part_of_batch
from dive_fast.train.precision import check_precision
from dive_fast.types import InputError

C = TypeVar("C", bound=TrainConfig)
_LOG_LINE = 300  # bytes of a logged step at most, TensorBoard's included


@dataclass(frozen=True)
class Run:
    """A training that writes the folder `out`, last its file `record`, which notes the run's `id`.

    The id is the hash of data and settings. `out`.training has logs, and the states of `phases` that a rerun resumes from.
    """

    out: Path
    id: str
    record: str
    phases: Sequence[PhaseConfig] = ()

    @property
    def work(self) -> Path:
        return training_folder(self.out)

    def finished(self) -> bool:
        """Returns whether the result is there; that of another run, or another folder, raises `InputError`."""
        check_place(self.out, holds(self.record))
        path = self.out / self.record
        if not path.is_file():
            return False
        record = read_json(path, "result of a training")
        noted = record.get("facts", record.get("metadata")) if isinstance(record, dict) else None
        if not isinstance(noted, dict) or noted.get("run") != self.id:
            raise InputError(f"{self.out} is of other data or settings; choose another --out or delete it")
        return True

    def resume(self) -> bool:
        """As `finished`, and clears what a finished run left; a state of another run raises `InputError`."""
        done = self.finished()
        if done:
            self.clear()
        for phase in self.phases:
            phase.steps_done()
        return done

    def clear(self) -> None:
        """Removes what a finished run does not need, its own states too that a kill left."""
        remove_states(self.work)
        clear_leftovers(self.out.parent.absolute())

    def steps_done(self) -> list[int]:
        """Returns the steps that each phase has done; a state of another run raises `InputError`."""
        done = self.finished()
        return [phase.steps if done else phase.steps_done() for phase in self.phases]

    def check_disk(self, needed: int) -> None:
        """Raises `DiveError` when the disk has too little space for the rest of a run that writes `needed` bytes."""
        written = sum(file.stat().st_size for file in self.work.glob("*") if file.is_file())
        check_space(self.out, max(0, needed - written))

    @contextmanager
    def working(self, needed: int) -> Iterator[None]:
        """Locks `out` for the block; raises as `check_disk`, and `InputError` for another folder and another run's lock."""
        check_place(self.out, holds(self.record))
        self.check_disk(needed)
        if not leading():
            yield
            return
        with clear_disk_errors(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
        with locked(self.work / "lock", self.out):
            yield

    def save(self, write: Callable[[], object]) -> None:
        """Has the first process `write` the result, and clears what the run left."""
        with first_rank_first():
            if not self.finished():
                write()
                remove_states(self.work)


def check_training(config: TrainConfig, device: str) -> None:
    """Raises `InputError` for a device, precision, launcher or batch that cannot work here, `DiveError` without an extra."""
    check_device(device)
    check_precision(config.compute.mixed_precision, device)
    check_launcher(config.compute.mixed_precision)
    with part_of_batch(0, config.compute.accumulate):
        my_rows(config.batch)
    if config.tensorboard:
        require_tensorboard()


def deciding(config: C) -> C:
    """Returns the settings that decide a result, for a run's id; the others change it by rounding at most."""
    return replace(config, save_every=1, tensorboard=False, compute=Compute(config.compute.mixed_precision))


def training_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def work_bytes(config: TrainConfig, trained: int, steps: int, sheet_every: int = 0, pixels: int = 0) -> int:
    """Bytes at most of the logs of `steps`, of sheets of `pixels`, and of states of weights of `trained` bytes.

    A state has the weights, AdamW's two moments, and the average if there is one; the new one stands beside the old.
    """
    sheets = steps // sheet_every * pixels * 3 if sheet_every else 0
    return 2 * trained * (4 if config.average else 3) + steps // 10 * _LOG_LINE + sheets


def remove_states(work: Path) -> None:
    """Removes states, class photos, features of photos, trajectories and images, which a finished run does not need."""
    made = ("class", "features", "rows", "trajectories", "images")
    for pattern in ("*.state", *(f"{kind}-*.safetensors" for kind in made)):
        for file in work.glob(pattern):
            file.unlink(missing_ok=True)


def loss_curves(out: Path, phases: Sequence[str]) -> list[Curve]:
    """The training losses of the folder `out` that a training made, of phases that had steps."""
    logs = {name: training_folder(out) / f"{name}-loss.jsonl" for name in phases}
    trained = {name: path for name, path in logs.items() if path.exists() and path.stat().st_size}
    return [Curve(path, "loss", f"{name}: loss") for name, path in trained.items()]
