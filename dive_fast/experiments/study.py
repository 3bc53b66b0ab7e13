"""`dive-fast world study`: does the synthetic infrared help? Same recipe and seeds for every arm, on the pocket world."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dive_fast.experiments.arms import BASELINES, build_arms, external_photos, heldout_sides, paired_photos
from dive_fast.experiments.pipeline import PairConfig, Timings, build_engine, learn_missing, make_pairs
from dive_fast.io import write_json
from dive_fast.models import load_bundle
from dive_fast.reid.comparison.compare import compare
from dive_fast.reid.training.config import ReidConfig
from dive_fast.train.personalize import PersonalizeConfig, personalize
from dive_fast.types import InputError
from dive_fast.world.persons import CAPTION_TEMPLATE, caption_phrase
from dive_fast.world.trees import WorldSpec, build_world


@dataclass(frozen=True)
class StudyConfig:
    """Everything a study depends on. `adapter` None trains one from nothing on the world's own photos.

    `learn` is for that, or for the people whom `adapter` lacks.
    """

    world: WorldSpec = field(default_factory=WorldSpec)
    model: str = "pocket"
    adapter: str | None = "pocket"
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
    workers: int = 2  # ReID runs at once


def run_study(config: StudyConfig, out: Path) -> dict[str, Any]:
    """Builds the world, learns who is unknown, makes their infrared, trains every arm x seed; each step resumes.

    Writes `out/study.json`, and what `compare` writes (table, JSON, plot) in `out/compare`.
    """
    if config.adapter == "pocket" and config.world.seed != 0:
        raise InputError(
            f"the shipped adapter knows the people of world seed 0, not those of {config.world.seed}; with --world-seed"
            " give --adapter none"
        )
    timings = Timings()
    world = out / "world"
    with timings.stage("world"):
        build_world(world, config.world)
    photos = external_photos(world)
    with timings.stage("learn"):
        if config.adapter is None:
            everyone = [*paired_photos(world), *photos]
            adapter = personalize(load_bundle(config.model), everyone, out / "adapter", config.learn)
        else:
            adapter = learn_missing(config.model, config.adapter, photos, out / "adapter", config.learn)
    with timings.stage("fuse and export"):
        engine = build_engine(config.model, adapter, out, config.pairs.rows)
    with timings.stage("pairs"):
        made, summary = make_pairs(engine, photos, world / "market", out / "pairs", config.pairs)
    query, gallery = heldout_sides(world)
    arms = build_arms(world, out, [s for s in made if s.modality == "ir"], config.pairs.per_camera)
    with timings.stage("reid"):
        comparison = compare(
            arms, query, gallery, config.reid, config.seeds, out / "compare", baseline=BASELINES, workers=config.workers
        )
    result = {
        "config": asdict(config),
        "seconds": timings.seconds,
        "synth": asdict(summary),
        "comparison": asdict(comparison),
    }
    write_json(out / "study.json", result)
    return result
