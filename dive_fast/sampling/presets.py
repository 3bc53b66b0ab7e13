"""Named ways to sample: what is left out for speed, in small records that a plan takes over and may override.

What each costs in usefulness is measured in docs/presets.md.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from dive_fast.sampling.schedule import Schedule


@dataclass(frozen=True)
class Preset:
    """`steps` of DPM-Solver++ 2M. `interval` (low, high): guidance only where low < sigma <= high, sigma the noise-to-signal
    ratio (arXiv 2404.07724); None: at every step. `reuse` N > 1: of N steps one computes the whole UNet, and the others only
    its last `reuse_depth` layers, on the deep features of that one (DeepCache, arXiv 2312.00858). `precision` is what
    engines for it are made in. The scale of guidance is the model's affair.
    """

    name: str
    steps: int
    interval: tuple[float, float] | None = None
    reuse: int = 1
    reuse_depth: int = 0
    precision: str = "fp16"


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", steps=50),
        Preset("fast", steps=25, interval=(0.3, 5.0)),
        Preset("turbo", steps=25, interval=(0.3, 5.0), reuse=2, reuse_depth=1, precision="fp8"),
    )
}


def whole_steps(schedule: Schedule, start: int, reuse: int, guided_at: Container[int] | None = None) -> frozenset[int]:
    """The timesteps from step `start` on at which the whole UNet is computed: every `reuse`-th, counted anew where guidance
    sets in or ends (`guided_at`: the timesteps with guidance, None: all), as other rows have no deep features yet.
    """
    whole = []
    before: bool | None = None
    since = 0
    for timestep in schedule.timesteps[start:]:
        guides = guided_at is None or timestep in guided_at
        since = 0 if guides is not before else (since + 1) % reuse
        before = guides
        if since == 0:
            whole.append(timestep)
    return frozenset(whole)
