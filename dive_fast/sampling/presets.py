"""Named ways to sample: what is left out for speed, in small records that a plan takes over and may override.

They are chosen from a study of what each costs in usefulness, docs/presets.md. It found guidance intervals worth no more
than fewer steps, so no preset has one; a plan may.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """`steps` of DPM-Solver++ 2M. `interval` (low, high): guidance only where low < sigma <= high, sigma the noise-to-signal
    ratio (arXiv 2404.07724); None: at every step. `precision` is what
    engines for it are made in. The scale of guidance is the model's affair.
    """

    name: str
    steps: int
    interval: tuple[float, float] | None = None
    precision: str = "fp16"

    def words(self) -> str:
        """What is computed, for a reader."""
        parts = [f"{self.steps} steps"]
        if self.interval is not None:
            parts.append("guidance at sigma {:g} to {:g}".format(*self.interval))
        return ", ".join(parts)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", steps=50),
        Preset("fast", steps=15),
        Preset("turbo", steps=7, precision="fp8"),
    )
}
