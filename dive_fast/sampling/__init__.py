"""From noise to latents: settings, noise by seed, schedules, DPM-Solver++ 2M and guidance, as plain functions.

Names are imported at their first use: `dive_fast.sampling.config` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dive_fast.sampling.config import PRESETS, SD15, STRENGTH, Preset, Sampling
    from dive_fast.sampling.guidance import EpsRows, guided, repeated
    from dive_fast.sampling.noise import add_noise, initial_noise
    from dive_fast.sampling.schedule import Schedule
    from dive_fast.sampling.solver import Eps, OnStep, dpmpp_2m

__all__ = [
    "PRESETS",
    "SD15",
    "STRENGTH",
    "Eps",
    "EpsRows",
    "OnStep",
    "Preset",
    "Sampling",
    "Schedule",
    "add_noise",
    "dpmpp_2m",
    "guided",
    "initial_noise",
    "repeated",
]
_MODULES = ("config", "schedule", "noise", "solver", "guidance")  # the first loads no torch

if not TYPE_CHECKING:  # or mypy would accept any name

    def __getattr__(name: str) -> Any:
        for module in _MODULES if name in __all__ else ():
            found = importlib.import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
