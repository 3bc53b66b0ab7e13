"""Settings of distillations that take seconds on the tiny model, and a student that takes none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dive_fast.distil.config import DistilConfig

CONFIG = DistilConfig(
    student_steps=2, guidance=3.0, teacher_steps=4, trajectories=40, steps=6, batch=4, rank=2, warmup=1, save_every=2
)


def save_student(fused: Path, out: Path) -> Path:
    """Writes a student of two steps for guidance 3 that learned nothing: its teacher's weights; returns the folder."""
    from dive_fast.distil.trajectories import few_step_scheduler
    from dive_fast.models import load_bundle, save_bundle
    from dive_fast.models.student import Student, attention_sums
    from dive_fast.sampling import Sampling

    bundle = load_bundle(fused)
    student = Student(bundle.fingerprint, 3.0, attention_sums(bundle.unet))
    scheduler = few_step_scheduler(bundle.scheduler_config, order=1)
    save_bundle(replace(bundle, scheduler_config=scheduler, sampling=Sampling(2, 1.0), student=student), out)
    return out
