"""How images are sampled: one record for models, plans, bench, experiments and FP8 calibration. Loads no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from dive_fast.settings import AtMost, NonNegativeFloat, PositiveInt, Reads, Settings
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    from dive_fast.sampling.schedule import Schedule

DenoisingSteps = Annotated[PositiveInt, AtMost(10_000)]

STRENGTH = 0.7
"""Mode photo-guided: the fraction of the steps that run on a photo, so how far the infrared image may leave it."""


def _interval(text: str) -> tuple[float, float] | None:
    if text == "all":
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"must be LOW,HIGH, two noise levels, or all, got {shown(text)}") from error
    return low, high


@dataclass(frozen=True)
class Sampling(Settings):
    """Steps and guidance of DPM-Solver++ 2M (arXiv 2211.01095); a value out of bounds raises `InputError`.

    The defaults are the pocket model's.
    """

    steps: DenoisingSteps = 20
    """DPM-Solver++ steps. Each model has its own default: this is the pocket model's, Stable Diffusion 1.5's is 50."""
    guidance: NonNegativeFloat = 2.0
    """Scale of classifier-free guidance, 1 = none. Each model has its own default: this is the pocket model's, Stable
    Diffusion 1.5's is 7.5."""
    guidance_interval: Annotated[tuple[float, float], Reads(_interval, "LOW,HIGH|all")] | None = None
    """Guidance only at noise levels LOW < sigma <= HIGH (noise-to-signal ratios, arXiv 2404.07724)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        interval = self.guidance_interval
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance must be finite, got {self.guidance}")
        if interval is not None and not 0 <= interval[0] < interval[1] < math.inf:
            raise InputError(f"guidance_interval must be two noise levels, 0 <= low < high, got {interval}")
        object.__setattr__(self, "steps", int(self.steps))  # equal settings are equal in JSON, too
        object.__setattr__(self, "guidance", float(self.guidance))
        if interval is not None:
            object.__setattr__(self, "guidance_interval", tuple(map(float, interval)))

    @property
    def every_step_guided(self) -> bool:
        """Whether no step runs without the guidance that others have."""
        return self.guidance_interval is None

    def guided_timesteps(self, schedule: Schedule) -> frozenset[int]:
        """The timesteps of `schedule` with guidance."""
        if self.guidance == 1.0:
            return frozenset()
        interval = self.guidance_interval
        return frozenset(schedule.timesteps) if interval is None else schedule.within(interval)

    def images(self, rows: int) -> int:
        """How many images fit in a call of `rows` UNet rows: guidance takes two rows an image."""
        return rows if self.guidance == 1.0 else rows // 2

    def rows(self, images: int) -> int:
        """UNet rows of a step with guidance."""
        return images if self.guidance == 1.0 else 2 * images

    def describe(self) -> str:
        """For a reader: "15 steps, guidance 2 at sigma 0.3 to 6"."""
        guidance = "no guidance" if self.guidance == 1.0 else f"guidance {self.guidance:g}"
        interval = self.guidance_interval
        at = "" if interval is None or self.guidance == 1.0 else " at sigma {:g} to {:g}".format(*interval)
        return f"{self.steps} step{'s' * (self.steps != 1)}, {guidance}{at}"


SD15 = Sampling(steps=50, guidance=7.5)
"""How DiVE samples Stable Diffusion 1.5 (its public code), and so every model that records no sampling of its own."""


@dataclass(frozen=True)
class Preset:
    """A named number of steps; None is a student, which has its own. Guidance is the model's."""

    name: str
    steps: int | None

    def applied_to(self, sampling: Sampling) -> Sampling:
        """Returns a model's sampling with the preset's steps."""
        return sampling if self.steps is None else replace(sampling, steps=self.steps)


# docs/speed.md says what each costs. A guidance interval was worth no more than fewer steps, so no preset has one.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", 50),
        Preset("fast", 15),
        Preset("turbo", None),
    )
}
