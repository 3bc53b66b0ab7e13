"""The walk of demo and study: render a world, learn, fuse, export, make pairs, train and compare ReID models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from dive_fast.encoder.encode import encode_onto
from dive_fast.engines import Engine, load_engine
from dive_fast.environment.optional import require
from dive_fast.experiments.arms import (
    BASELINE,
    autoencoded_infrared,
    build_arms,
    external_photos,
    grey_infrared,
    heldout_sides,
    paired_photos,
)
from dive_fast.experiments.config import PairConfig, StudyConfig
from dive_fast.experiments.scorer import measured_once, picture_quality, train_scorer, true_infrared
from dive_fast.io import atomic_write
from dive_fast.json_files import read_json
from dive_fast.models import fuse, load_adapter, load_bundle
from dive_fast.models.adapter import Adapter
from dive_fast.models.bundle import save_bundle
from dive_fast.reid.comparison.compare import compare
from dive_fast.reid.comparison.records import Comparison, Rate
from dive_fast.synth.local import Summary, synthesize
from dive_fast.synth.manifest import read_pairs
from dive_fast.synth.plan import make_plan
from dive_fast.train.personalize import personalize
from dive_fast.types import InputError, Sample
from dive_fast.world.trees import build_world

_NOTE_SECONDS = 60.0  # between writes of the seconds of a stage that runs


class Timings:
    """Seconds of each stage, in running order, over all runs that share `path`; a killed run loses at most a minute."""

    def __init__(self, path: Path) -> None:
        self._path = path
        held = read_json(path, "seconds") if path.exists() else {}
        if not isinstance(held, dict) or not all(type(value) in (int, float) for value in held.values()):
            raise InputError(f"{path} holds no seconds of stages; delete it")
        self.seconds: dict[str, float] = held

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to the stage, while the block runs too."""
        start, before, ended = time.perf_counter(), self.seconds.get(name, 0.0), Event()

        def note() -> None:
            self.seconds[name] = round(before + time.perf_counter() - start, 1)
            atomic_write(self._path, json.dumps(self.seconds, indent=2) + "\n")  # in running order

        def keep_noting() -> None:
            while not ended.wait(_NOTE_SECONDS):
                note()

        clock = Thread(target=keep_noting, daemon=True)
        clock.start()
        try:
            yield
        finally:
            ended.set()
            clock.join()
            note()


def study_adapter(config: StudyConfig, world: Path, out: Path) -> Adapter:
    """Returns the adapter of a study: trained in `out`, or the given one, with the external identities that it lacks."""
    photos, place = external_photos(world), out / "adapter"
    if config.adapter is None:
        return personalize(load_bundle(config.model), [*paired_photos(world), *photos], place, config.learn)
    known = load_adapter(config.adapter)
    new = lacking(known, photos)
    if not new:
        return known
    if config.encoder is None:
        return personalize(load_bundle(config.model), new, place, config.learn, init_from=known)
    return encode_onto(config.encoder, config.adapter, new, place)[0]


def lacking(adapter: Adapter, photos: Sequence[Sample]) -> list[Sample]:
    """The photos of identities that the adapter lacks."""
    pids = {identity.pid for identity in adapter.identities}
    return [sample for sample in photos if sample.pid not in pids]


def build_engine(model: str | Path, adapter: Adapter, work: Path, rows: int) -> Engine:
    """Fuses and exports into folders of `work` that are named by the adapter, once, and opens the engine."""
    fused, engine = exported(model, adapter, work, rows)
    return load_engine(engine)


def exported(model: str | Path, adapter: Adapter, work: Path, rows: int) -> tuple[Path, Path]:
    """Returns the folders of fused model and engine in `work`, named by the adapter, made where they are missing."""
    from dive_export import export_engine

    name = adapter.fingerprint[:12]
    fused, engine = work / f"fused-{name}", work / f"engine-{name}"
    if not fused.is_dir():  # save_bundle writes atomically
        save_bundle(fuse(load_bundle(model), adapter), fused)
    export_engine(fused, engine, rows_max=rows)
    return fused, engine


def make_pairs(
    engine: Engine, photos: Sequence[Sample], photo_root: Path, out: Path, config: PairConfig
) -> tuple[list[Sample], Summary]:
    """Makes pairs of the identities of `photos` in `out`; returns the generated samples and the run's summary."""
    from_photos, profile = config.mode != "synthetic", engine.spec.profile
    plan = make_plan(
        mode=config.mode,
        pids=sorted({s.pid for s in photos}),
        cameras=engine.prompts.table.cameras,
        ir=config.infrared,
        rgb=() if from_photos else config.visible,
        pairs_per_identity=config.per_camera,
        seed=config.seed,
        sampling=config.sampling,
        height=profile.height,
        width=profile.width,
        model_fingerprint=engine.spec.model_fingerprint,
        photos=photos if from_photos else None,
        photo_root=photo_root if from_photos else None,
        strength=config.strength,
    )
    summary = synthesize(plan, engine, out, rows=config.rows)
    return [s for s in read_pairs(out) if s.source == "synthetic"], summary


@dataclass(frozen=True)
class Walk:
    """The results of a walk.

    `photos` are RGB photos of external identities, `infrared` their generated infrared, and `quality` is what
    `PictureQuality.summary` says of it.
    """

    world: Path
    photos: list[Sample]
    engine: Engine
    infrared: list[Sample]
    summary: Summary
    quality: dict[str, Any]
    comparison: Comparison
    timings: Timings


def run_walk(config: StudyConfig, out: Path) -> Walk:
    """Runs the walk in `out`, or resumes it; `compare` writes its table, JSON and plot to `out/compare`.

    `out/quality.json` has what the scorer, in `out/scorer`, found of the arms' infrared. `out/seconds.json` has the seconds
    of each stage over all runs. Raises `DiveError` for a missing package before any work.
    """
    require("this command", "peft", "onnx", "onnxscript", "onnxruntime", "scipy", "matplotlib")
    timings = Timings(out / "seconds.json")
    world = out / "world"
    with timings.stage("world"):
        build_world(world, config.world, progress=True)
    photos = external_photos(world)
    with timings.stage("people"):
        adapter = study_adapter(config, world, out)
    with timings.stage("fuse and export"):
        engine = build_engine(config.model, adapter, out, config.pairs.rows)
    with timings.stage("pairs"):
        made, summary = make_pairs(engine, photos, world / "market", out / "pairs", config.pairs)
    infrared, per_camera = [s for s in made if s.modality == "ir"], config.pairs.per_camera
    with timings.stage("autoencoder"):
        truth, _ = true_infrared(world, per_camera)
        autoencoded = autoencoded_infrared(engine, truth, out / "autoencoder")
    with timings.stage("scorer"):
        scorer = train_scorer(world, out / "scorer", config.scorer)
    with timings.stage("identity kept"):
        grey = grey_infrared(world, out / "grey", per_camera)
        quality = _quality(world, {"grey": grey, "ours": infrared, "autoencoder": autoencoded}, scorer, per_camera, out)
    query, gallery = heldout_sides(world)
    arms = build_arms(world, out, infrared, per_camera, autoencoded if config.autoencoder else ())
    rates = {name: Rate(**rows[0]["kept"]["by_image"]) for name, rows in quality["arms"].items() if name in arms}
    options: dict[str, Any] = {"baseline": BASELINE, "kept": rates, "workers": config.workers}
    with timings.stage("reid"):
        comparison = compare(arms, query, gallery, config.reid, config.seeds, out / "compare", **options)
    return Walk(world, photos, engine, infrared, summary, quality, comparison, timings)


def _quality(world: Path, arms: dict[str, list[Sample]], scorer: Path, shots: int, out: Path) -> dict[str, Any]:
    """The summary of `picture_quality`, measured once and kept in `out/quality.json`."""
    oracle, gallery = true_infrared(world, shots)
    return measured_once(
        out / "quality.json",
        scorer,
        {**arms, "oracle": oracle, "gallery": gallery},
        lambda: picture_quality(world, arms, scorer, shots=shots).summary(),
    )
