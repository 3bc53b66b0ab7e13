"""The options that say how images are sampled: the same wherever they are planned or timed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import typer

from dive_fast.sampling.config import PRESETS, Preset, Sampling
from dive_fast.types import InputError

DEFAULT = Sampling()
PresetName = Annotated[
    Literal["exact", "fast", "turbo"] | None,
    typer.Option(
        help="Sampling settings by name (docs/presets.md says what each costs); the options below override it."
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        min=1, help=f"DPM-Solver++ steps; {DEFAULT.steps} without a preset. DiVE on Stable Diffusion 1.5: 50."
    ),
]
Guidance = Annotated[
    float, typer.Option(min=0, help="Scale of classifier-free guidance, 1 = none; DiVE on Stable Diffusion 1.5: 7.5.")
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        help="LOW,HIGH: guidance only at these noise levels (sigma, the noise-to-signal ratio); all: at every step."
    ),
]


def chosen_preset(name: str | None, steps: int | None, guidance: float, interval: str | None) -> Preset:
    """The preset called `name`, or the defaults, with what the options override."""
    preset = Preset("none", DEFAULT) if name is None else PRESETS[name]
    sampling = replace(preset.sampling, guidance=guidance)
    if steps is not None:
        sampling = replace(sampling, steps=steps)
    if interval is not None:
        sampling = replace(sampling, guidance_interval=None if interval == "all" else _interval(interval))
    return replace(preset, sampling=sampling)


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--guidance-interval takes LOW,HIGH, two noise levels, or all; got {text!r}") from error
    return low, high
