"""The settings of `dive-fast world study` and `dive-fast demo`."""

from __future__ import annotations

from dataclasses import dataclass, field

from dive_fast.reid.training.config import ReidConfig
from dive_fast.train.config import PersonalizeConfig
from dive_fast.types import PairMode, check_ranges
from dive_fast.world.captions import CAPTION_TEMPLATE, caption_phrase
from dive_fast.world.config import WorldSpec


@dataclass(frozen=True)
class PairConfig:
    """How pairs are made."""

    mode: PairMode = "real-rgb"
    """Whether the RGB side is the real photo, generated, or both sides are generated from the photo."""
    per_camera: int = 5
    """Pairs per identity and infrared camera."""
    steps: int = 20
    """DPM-Solver++ steps."""
    guidance: float = 2.0
    """Scale of classifier-free guidance."""
    guidance_interval: tuple[float, float] | None = None  # this and the next two as in sampling.Preset
    reuse: int = 1
    reuse_depth: int = 1
    strength: float = 0.7
    """Fraction of the noise schedule that photo-guided pairs start from."""
    seed: int = 0
    """Seed of the pairs' noise."""
    rows: int = 64
    """UNet batch rows of the engine."""
    infrared: tuple[str, ...] = ("cam3", "cam6")
    """Infrared cameras."""
    visible: tuple[str, ...] = ("cam1", "cam4")
    """RGB cameras of synthetic pairs."""

    def __post_init__(self) -> None:
        at_least_0 = dict.fromkeys(("guidance", "seed"), (0, None))
        check_ranges(self, "pairs", **dict.fromkeys(("per_camera", "steps", "rows"), (1, None)), **at_least_0)


@dataclass(frozen=True)
class StudyConfig:
    """Everything that a study depends on."""

    world: WorldSpec = field(default_factory=WorldSpec)
    model: str = "pocket"
    """Base model folder; pocket is the shipped one."""
    adapter: str | None = "pocket"
    """Adapter to start from; pocket is the shipped one, and none trains one on the world's own photos."""
    learn: PersonalizeConfig = field(
        default_factory=lambda: PersonalizeConfig(
            identity_steps=300,
            steps=60,
            batch=16,
            save_every=50,
            mix_lr=0.01,
            words_from="pocket",
            text_noise=0.25,
            phrase=caption_phrase(),
            template=CAPTION_TEMPLATE,
            phrase_drop=0.25,
        )
    )
    pairs: PairConfig = field(default_factory=PairConfig)
    reid: ReidConfig = field(default_factory=lambda: ReidConfig(steps=1000, missing="visible", synthetic_share=0.25))
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the ReID trainings; every arm runs with each."""
    workers: int = 2
    """ReID trainings that run at once."""

    def __post_init__(self) -> None:
        check_ranges(self, "study", workers=(1, None))


@dataclass(frozen=True)
class DemoConfig(StudyConfig):
    """A study of minutes on two cores, in which some external identities are new to the adapter."""

    world: WorldSpec = field(
        default_factory=lambda: WorldSpec(test_ids=24, external_ids=40, images_per_camera=5, market_images=8)
    )
    learn: PersonalizeConfig = field(
        default_factory=lambda: PersonalizeConfig(steps=60, batch=16, save_every=50, mix_lr=0.01, words_from="pocket")
    )
    pairs: PairConfig = field(default_factory=lambda: PairConfig(per_camera=3, steps=16))
    reid: ReidConfig = field(default_factory=lambda: ReidConfig(steps=350, missing="visible", synthetic_share=0.25))
    seeds: tuple[int, ...] = (0,)
    shown: int = 8
    """Identities on the page, which are also made in the other two pair modes."""
