"""The scheduler of diffusers that ours is compared with."""

from __future__ import annotations

from typing import Any


def diffusers_scheduler(config: dict[str, Any], steps: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler
