"""Named ways to sample: what is left out for speed, in small records that a plan takes over and may override.

They are chosen from a study of what each costs in usefulness, docs/presets.md. It found neither guidance intervals nor reuse
worth more than fewer steps, so no preset has them; a plan may.
"""

from __future__ import annotations

from collections import Counter
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

    def words(self) -> str:
        """What is computed, for a reader."""
        parts = [f"{self.steps} steps"]
        if self.interval is not None:
            parts.append("guidance at sigma {:g} to {:g}".format(*self.interval))
        if self.reuse > 1:
            parts.append(f"the whole UNet once in {self.reuse} steps, else its last {self.reuse_depth} layers")
        return ", ".join(parts)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", steps=50),
        Preset("fast", steps=15),
        Preset("turbo", steps=7, precision="fp8"),
    )
}


def whole_steps(schedule: Schedule, start: int, reuse: int, guided_at: Container[int]) -> frozenset[int]:
    """The timesteps from step `start` on at which the whole UNet is computed: every `reuse`-th, counted anew where guidance
    sets in or ends (`guided_at`: the timesteps with guidance), as other rows have no deep features yet.
    """
    whole = []
    before: bool | None = None
    since = 0
    for timestep in schedule.timesteps[start:]:
        guides = timestep in guided_at
        since = 0 if guides is not before else (since + 1) % reuse
        before = guides
        if since == 0:
            whole.append(timestep)
    return frozenset(whole)


@dataclass(frozen=True)
class Course:
    """The steps of a run from `start` on: the timesteps with guidance, and those at which the whole UNet is computed."""

    schedule: Schedule
    start: int
    guided: frozenset[int]
    whole: frozenset[int]

    @classmethod
    def of(
        cls, schedule: Schedule, guidance: float, interval: tuple[float, float] | None, reuse: int, start: int = 0
    ) -> Course:
        """As a plan says it: scale 1.0 is no guidance; `interval` and `reuse` are those of `Preset`."""
        at = frozenset(schedule.timesteps) if interval is None else schedule.within(interval)
        at = at if guidance != 1.0 else frozenset()
        return cls(schedule, start, at, whole_steps(schedule, start, reuse, at))

    def calls(self) -> Counter[tuple[bool, bool]]:
        """How many UNet calls are (with guidance, whole)."""
        return Counter((t in self.guided, t in self.whole) for t in self.schedule.timesteps[self.start :])
