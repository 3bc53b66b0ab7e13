"""Distils a fused model into a student of few steps without guidance: resumable, kill-safe, from prompts alone.

Guidance in one pass follows arXiv 2210.03142 and, with few trained weights on the model's own guided trajectories, AGD
(arXiv 2503.07274). Few steps follow from the same trajectories: between two of the student's times, the teacher's solver
takes many steps, and the student learns where they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.distil.config import DistilConfig
from dive_fast.distil.learner import forecast
from dive_fast.distil.likeness import Likeness
from dive_fast.distil.trainer import StudentTrainer, check_settings
from dive_fast.io import sha256_bytes
from dive_fast.models.bundle import save_bundle
from dive_fast.models.student import STUDENT_FILE, Student, read_student
from dive_fast.train.loop import PhaseConfig
from dive_fast.train.run import Run, deciding, training_folder
from dive_fast.types import from_dict

if TYPE_CHECKING:
    from dive_fast.models.bundle import ModelBundle
    from dive_fast.train.dryrun import Forecast

PHASE = "distil"


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
    run = _run(bundle, out, config, exclude, device, progress)
    if not run.resume():  # also refuses other settings, before trajectories are solved
        trainer = StudentTrainer(bundle, config, exclude, device)
        with run.working(trainer.disk_bytes()):
            trajectories = trainer.blocks.kept(run.work, progress)
            trainer.learn(run, trajectories, trainer.sheet_callback(run.phases[0], trajectories))
            likeness = asdict(trainer.likeness(trajectories))
            metadata = {**asdict(config), "exclude": sorted(exclude), "likeness": likeness, "run": run.id}
            student = trainer.student(metadata)
            run.save(lambda: save_bundle(student, out))
    record = read_student(out)
    assert record is not None  # it is saved by now
    return record


def dry_run(
    bundle: ModelBundle, out: Path, config: DistilConfig, exclude: Sequence[str] = (), device: str = "cpu"
) -> Forecast:
    """Estimates the cost of `distil` with these arguments from a few trajectories and steps; writes nothing.

    `bundle` is changed in place and cannot be used afterwards. Raises what `distil` raises before any work.
    """
    run = _run(bundle, out, config, exclude, device, progress=False)
    return forecast(run, lambda: StudentTrainer(bundle, config, exclude, device), device)


def _run(
    bundle: ModelBundle, out: Path, config: DistilConfig, exclude: Sequence[str], device: str, progress: bool
) -> Run:
    check_settings(bundle, config, device)
    settings = replace(deciding(config), sheet_every=0)
    run = sha256_bytes(repr((bundle.fingerprint, settings, sorted(exclude))).encode())
    phase = PhaseConfig.of(config, PHASE, training_folder(out), config.steps, config.lr, run, progress)
    return Run(out, run, STUDENT_FILE, (phase,))


def likeness_of(student: Student) -> Likeness:
    """How near the student came to its teacher, as its training measured."""
    return from_dict(Likeness, student.metadata.get("likeness"), "student.json")
