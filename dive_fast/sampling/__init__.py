"""From noise to latents: noise by seed, schedules, DPM-Solver++ 2M and guidance, as plain functions over a callable."""

from dive_fast.sampling.guidance import EpsRows, guided, repeated
from dive_fast.sampling.noise import add_noise, initial_noise
from dive_fast.sampling.presets import PRESETS, Preset
from dive_fast.sampling.schedule import Schedule
from dive_fast.sampling.solver import Eps, OnStep, dpmpp_2m

__all__ = [
    "PRESETS",
    "Eps",
    "EpsRows",
    "OnStep",
    "Preset",
    "Schedule",
    "add_noise",
    "dpmpp_2m",
    "guided",
    "initial_noise",
    "repeated",
]
