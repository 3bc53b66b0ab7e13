"""Distils a fused model into a student of few steps without guidance: resumable, kill-safe, from prompts alone.

Guidance in one pass follows arXiv 2210.03142 and, with few trained weights on the model's own guided trajectories, AGD
(arXiv 2503.07274). Few steps follow from the same trajectories: between two of the student's times, the teacher's solver
takes many steps, and the student learns where they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.data.prepare import megabytes
from dive_fast.distil.blocks import blocks_of
from dive_fast.distil.config import DistilConfig
from dive_fast.distil.likeness import Likeness
from dive_fast.distil.trainer import StudentTrainer, check_settings, phase_config
from dive_fast.distributed import first_rank_first
from dive_fast.io import clear_leftovers, sha256_bytes
from dive_fast.models.bundle import is_written_here, save_bundle
from dive_fast.models.student import Student, read_student
from dive_fast.outputs import check_place
from dive_fast.train.config import Compute
from dive_fast.train.dryrun import PhaseForecast, measure
from dive_fast.train.loop import TrainState, run_phase
from dive_fast.train.memory import tensor_bytes
from dive_fast.train.personalize import check_disk, locked, remove_states, training_folder
from dive_fast.types import InputError, from_dict
from dive_fast.words import duration

if TYPE_CHECKING:
    from dive_fast.models.bundle import ModelBundle


def distil(
    bundle: ModelBundle,
    out: Path,
    config: DistilConfig,
    exclude: Sequence[str] = (),
    progress: bool = True,
    device: str = "cpu",
) -> Student:
    """Distils the fused model `bundle` for its people but those of `exclude`; writes the student `out`, returns its record.

    `bundle` is changed in place and cannot be used afterwards. `out` is a fused model folder, and appears whole at the end;
    `out`.training holds the teacher's trajectories, the loss log and the state from which a rerun resumes. A model without
    prompts or that is a student, and other data in `out`, raise `InputError` before any work; a full disk `DiveError`.
    """
    check_settings(bundle, config, device)
    run, work = run_id(bundle, config, exclude), training_folder(out)
    finished = finished_student(out, run)
    if finished is not None:
        remove_states(work)
        clear_leftovers(out.parent.absolute())
        return finished
    phase = phase_config(config, work, run, progress)
    phase.saved_state()  # refuses other settings before trajectories are solved
    trainer = StudentTrainer(bundle, config, exclude, device)
    with locked(out):
        check_disk(trainer.disk_bytes(), out)
        trajectories = trainer.teacher.trajectories(work, progress)
        lora = trainer.add_student()
        groups = [{"params": lora, "weight_decay": 0.0}]
        loss_at = partial(trainer.loss, trajectories=trajectories)
        run_phase(phase, groups, loss_at, callback=trainer.sheet_callback(phase, trajectories))
        likeness = trainer.likeness(trajectories)
        metadata = {**asdict(config), "exclude": sorted(exclude), "likeness": asdict(likeness), "run": run}
        student = trainer.student(metadata)
        with first_rank_first():
            if finished_student(out, run) is None:
                save_bundle(student, out)
                remove_states(work)
    assert student.student is not None
    return student.student


def finished_student(out: Path, run: str) -> Student | None:
    """Returns the student that the run `run` finished in `out`, if any; another one raises `InputError`."""
    check_place(out, is_written_here)
    student = read_student(out)
    if student is not None and student.metadata.get("run") != run:
        raise InputError(f"{out} holds a student of another model or settings; choose another --out or delete it")
    if student is None and is_written_here(out):
        raise InputError(f"{out} holds a model that is no student; choose another --out")
    return student


def run_id(bundle: ModelBundle, config: DistilConfig, exclude: Sequence[str]) -> str:
    """Returns the id of a run's model and settings; those that change results by rounding at most do not count."""
    precision = Compute(config.compute.mixed_precision)
    settings = replace(config, save_every=1, sheet_every=0, tensorboard=False, compute=precision)
    return sha256_bytes(repr((bundle.fingerprint, settings, sorted(exclude))).encode())


def likeness_of(student: Student) -> Likeness:
    """How near the student came to its teacher, as its training measured."""
    return from_dict(Likeness, student.metadata.get("likeness"), "student.json")


@dataclass(frozen=True)
class DistilForecast:
    """A dry run's result. Bytes are per process."""

    prompts: int
    trajectories: int
    batch: int
    solve_seconds: float
    training: PhaseForecast
    weights_bytes: int
    trajectories_bytes: int
    disk_bytes: int
    device: str

    @property
    def memory_bytes(self) -> int:
        """Device memory of the training."""
        return self.weights_bytes + self.training.optimizer_bytes + self.training.step_bytes

    @property
    def seconds(self) -> float:
        return self.solve_seconds + (self.training.steps - self.training.done) * self.training.seconds

    def text(self) -> str:
        return "\n".join(
            [
                "dry run: nothing was written",
                f"{self.trajectories:,} trajectories over {self.prompts:,} prompts",
                self.training.text(f"{self.batch} trajectories"),
                f"memory: about {megabytes(self.memory_bytes)} on {self.device}, {megabytes(self.weights_bytes)} of it"
                f" weights; {megabytes(self.trajectories_bytes)} of trajectories in main memory",
                f"disk: at most {megabytes(self.disk_bytes)}",
                f"time: about {duration(self.seconds)}, of which {duration(self.solve_seconds)} to solve trajectories",
            ]
        )


def dry_run(
    bundle: ModelBundle, out: Path, config: DistilConfig, exclude: Sequence[str] = (), device: str = "cpu"
) -> DistilForecast:
    """Estimates the cost of `distil` with these arguments from one block and a few steps; writes nothing.

    `bundle` is changed in place and cannot be used afterwards. Raises what `distil` raises before any work.
    """
    import time

    check_settings(bundle, config, device)
    run, work = run_id(bundle, config, exclude), training_folder(out)
    finished = finished_student(out, run) is not None
    phase = phase_config(config, work, run, progress=False)
    done = config.steps if finished else (phase.saved_state() or {"step": 0})["step"]
    trainer = StudentTrainer(bundle, config, exclude, device)
    teacher = trainer.teacher
    blocks = blocks_of(teacher.count)
    solved = len(blocks) if finished else len(list(work.glob("trajectories-*.safetensors")))
    disk_bytes = trainer.disk_bytes()
    check_disk(disk_bytes, out)
    teacher.solve(range(1))  # the first call takes longer
    few = range(min(config.batch, len(blocks[0])))
    begun = time.perf_counter()
    states = teacher.solve(few)
    seconds = (time.perf_counter() - begun) / len(few)
    trajectories = teacher.trajectories_of(states)
    train = TrainState(
        phase,
        [{"params": trainer.add_student(), "weight_decay": 0.0}],
        lambda step: trainer.error(trajectories, [row % len(few) for row in trainer.rows(step)]),
    )
    return DistilForecast(
        prompts=len(teacher.keys),
        trajectories=teacher.count,
        batch=config.batch,
        solve_seconds=seconds * sum(len(block) for block in blocks[solved:]),
        training=measure(train, done),
        weights_bytes=tensor_bytes([bundle.text_encoder, bundle.unet]),
        trajectories_bytes=teacher.nbytes,
        disk_bytes=disk_bytes,
        device=device,
    )
