"""What `dive-fast bench` measures. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from dive_fast.sampling.config import PRESETS, DenoisingSteps, Preset, Sampling
from dive_fast.settings import PositiveInt, Reads, Settings
from dive_fast.types import InputError, shown

BASELINES = {
    "reference": "DiVE's configuration: diffusers, LoRA of rank 128 unfused, autocast on a GPU, text encoder at every call",
    "tuned": "diffusers: LoRA fused, no autocast, channels-last, fused QKV, max-autotune, prompts encoded once",
    "compiled": "our loop, the whole UNet by torch.compile max-autotune",
    "onnxruntime": "our loop, variant plain exported to onnxruntime",
    "tensorrt": "our loop, a TensorRT engine",
}
WITH_STEPS = tuple(name for name, preset in PRESETS.items() if preset.steps is not None)


def _some_of(known: tuple[str, ...], numbers: bool = False) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        if text in ("all", "none"):
            return known if text == "all" else ()
        names = tuple(part.strip() for part in text.split(","))
        unknown = [name for name in names if name not in known and not (numbers and _is_number(name))]
        if unknown:
            more = " and numbers of steps" if numbers else ""
            raise InputError(f"{shown(unknown[0])} is unknown; give all, none, or some of {', '.join(known)}{more}")
        return names

    return read


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 6  # the bounds of steps are those of `Sampling`


def preset_of(name: str) -> Preset:
    """Returns the preset of a name or of a number of steps."""
    return Preset(f"{name} steps", int(name)) if _is_number(name) else PRESETS[name]


@dataclass(frozen=True)
class BenchConfig(Settings):
    """What is measured, see `measure_rows` and `measure_baselines`."""

    rows: tuple[int, ...] = (2, 8, 32, 64)
    """UNet rows per call; with --compare 2,32."""
    sampling: Sampling = field(default_factory=Sampling)
    """How images are sampled."""
    image_format: Literal["png", "jpg"] = "png"
    """Format that images are written in."""
    repeats: PositiveInt = 10
    """Timed UNet calls of each row count."""
    rounds: PositiveInt = 5
    """Timed batches of each row count, and interleaved rounds of the baselines."""
    baselines: Annotated[tuple[str, ...], Reads(_some_of(tuple(BASELINES)), "NAME,...|all|none")] = ()
    """Baselines to measure on equal terms: reference, tuned, compiled, onnxruntime, tensorrt."""
    baseline_rows: PositiveInt = 36
    """UNet rows per call of the baselines; DiVE's 18 images are 36."""
    tensorrt: Path | None = None
    """Built engine folder for the baseline tensorrt, or of the teacher of a student that TensorRT runs."""
    baseline_steps: DenoisingSteps | None = None
    """A student's engine with its teacher as --model: steps of the teacher and of the baselines, with the guidance that the
    student has built in; by default those of exact."""
    presets: Annotated[tuple[str, ...], Reads(_some_of(WITH_STEPS, numbers=True), "NAME|STEPS,...|all|none")] = ()
    """Presets, or numbers of steps, to measure in the rounds of the baselines, on as many rows; of a student, its teacher's.
    Their images differ; docs/speed.md compares them."""

    @property
    def has_baselines(self) -> bool:
        """Whether anything is measured beside the engine's plain sampling."""
        return bool(self.baselines or self.presets)
