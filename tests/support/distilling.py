"""Settings of distillations that take seconds on the tiny model."""

from dive_fast.distil.config import DistilConfig

CONFIG = DistilConfig(
    student_steps=2, guidance=3.0, teacher_steps=4, trajectories=40, steps=6, batch=4, rank=2, warmup=1, save_every=2
)
