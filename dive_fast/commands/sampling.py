"""The options that say how images are sampled: the same wherever they are planned or timed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.sampling import Preset

STEPS = 20
PresetName = Annotated[
    Literal["exact", "fast", "turbo"] | None,
    typer.Option(
        help="Steps and guidance interval by name (docs/presets.md says what each costs); the options below override it."
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help=f"DPM-Solver++ steps; {STEPS} without a preset. DiVE on Stable Diffusion 1.5: 50."),
]
Guidance = Annotated[
    float, typer.Option(min=0, help="Scale of classifier-free guidance, 1 = none; DiVE on Stable Diffusion: 7.5.")
]
GuidanceInterval = Annotated[
    str | None,
    typer.Option(
        help="LOW,HIGH: guidance only at these noise levels (sigma, the noise-to-signal ratio); all: at every step."
    ),
]


def settings(preset: str | None, steps: int | None, interval: str | None) -> Preset:
    """What the options say, and the preset or the defaults where they say nothing."""
    from dive_fast.sampling import PRESETS, Preset

    found = Preset("own", steps=STEPS) if preset is None else PRESETS[preset]
    if steps is not None:
        found = replace(found, steps=steps)
    if interval is not None:
        found = replace(found, interval=None if interval == "all" else _interval(interval))
    return found


def _interval(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--guidance-interval takes LOW,HIGH, two noise levels, or all; got {text!r}") from error
    return low, high
