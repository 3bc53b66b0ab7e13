"""What speed costs in usefulness, on the pocket world: `python -m benchmarks.frontier --out FOLDER` (hours; it resumes).

Every setting of steps, guidance interval and reuse makes infrared for the same people; a ReID net is trained on each, with
several seeds, beside the arms without synthetic infrared and with the true one. Against the gap closed stands the rate, of
the whole loop on batches of 16 images, all settings in turns. Presets (dive_fast/sampling/presets.py) are chosen from this.

`--only pairs`, `reid` or `speed` does a part; speed is measured on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, interleaved, processor, versions
from dive_fast.arms import BASELINES, build_arms, external_photos, heldout_sides
from dive_fast.bench.batch import start_of
from dive_fast.engines import Engine, load_engine
from dive_fast.io import read_json, write_json
from dive_fast.models import fuse, load_bundle, save_bundle
from dive_fast.pipeline import PairConfig, learn_missing, make_pairs
from dive_fast.reid.compare import compare
from dive_fast.reid.train import ReidConfig
from dive_fast.study import StudyConfig
from dive_fast.synth import make_plan
from dive_fast.synth.clock import StageClock
from dive_fast.synth.render import Renderer
from dive_fast.types import Sample
from dive_fast.world.trees import WorldSpec, build_world

PACKAGES = ("torch", "diffusers", "numpy")
ROWS, IMAGES = 32, 16
BASE = PairConfig(per_camera=3, rows=ROWS)
WIDE, NARROW = (0.3, 6.0), (0.6, 3.0)
SETTINGS: dict[str, PairConfig] = {
    "50-steps": replace(BASE, steps=50),
    "25-steps": replace(BASE, steps=25),
    "15-steps": replace(BASE, steps=15),
    "10-steps": replace(BASE, steps=10),
    "7-steps": replace(BASE, steps=7),
    "25-steps-wide": replace(BASE, steps=25, guidance_interval=WIDE),
    "25-steps-narrow": replace(BASE, steps=25, guidance_interval=NARROW),
    "15-steps-wide": replace(BASE, steps=15, guidance_interval=WIDE),
    "25-steps-reuse2": replace(BASE, steps=25, reuse=2, reuse_depth=1),
    "25-steps-reuse3": replace(BASE, steps=25, reuse=3, reuse_depth=1),
    "25-steps-reuse3-deep": replace(BASE, steps=25, reuse=3, reuse_depth=2),
    "25-steps-wide-reuse2": replace(BASE, steps=25, guidance_interval=WIDE, reuse=2, reuse_depth=1),
    "15-steps-wide-reuse2": replace(BASE, steps=15, guidance_interval=WIDE, reuse=2, reuse_depth=1),
}


def engine_of(out: Path, photos: list[Sample]) -> Engine:
    """The shipped base with everybody learned and fused in, run by compiled torch: it can reuse at any depth."""
    adapter = learn_missing("pocket", "pocket", photos, out / "adapter", StudyConfig().learn)
    fused = out / f"fused-{adapter.fingerprint[:12]}"
    if not fused.is_dir():
        save_bundle(fuse(load_bundle("pocket"), adapter), fused)
    return load_engine(fused, "torch-compiled", device="cpu")


def usefulness(out: Path, world: Path, made: dict[str, list[Sample]], seeds: tuple[int, ...], workers: int) -> Any:
    """One comparison: the arms of a study, and an arm of each setting."""
    query, gallery = heldout_sides(world)
    arms: dict[str, list[Sample]] = {}
    for name, samples in made.items():
        found = build_arms(world, out, samples, BASE.per_camera)
        arms = {**{arm: found[arm] for arm in (*BASELINES, "oracle")}, **arms, name: found["ours"]}
    config = ReidConfig(steps=1000, missing="visible", synthetic_share=0.25)
    return compare(arms, query, gallery, config, seeds, out / "compare", baseline=BASELINES, workers=workers)


def loop(engine: Engine, setting: PairConfig) -> Callable[[], object]:
    """Noise to pixels for `IMAGES` images of as many people, by the renderer of synthesis."""
    table, profile = engine.prompts.table, engine.spec.profile
    plan = make_plan(
        mode="synthetic", pids=[identity.pid for identity in table.identities][:IMAGES], cameras=table.cameras, ir=["cam3"],
        rgb=["cam1"], pairs_per_identity=1, seed=0, steps=setting.steps, guidance=setting.guidance,
        guidance_interval=setting.guidance_interval, reuse=setting.reuse, reuse_depth=setting.reuse_depth,
        height=profile.height, width=profile.width, model_fingerprint=engine.spec.model_fingerprint,
    )  # fmt: skip
    start = start_of(plan, engine, IMAGES, ("ir",))
    renderer = Renderer(engine, plan, StageClock("encode", "denoise", "decode"))
    renderer.use_prompts(job.key for job in start.jobs)
    return lambda: renderer.images(start)


def speed(engine: Engine, repeats: int) -> dict[str, Any]:
    """Images a second of every setting, and how many times as fast as 50 steps, turn by turn."""
    times = interleaved({name: loop(engine, setting) for name, setting in SETTINGS.items()}, repeats)
    first = times["50-steps"]
    return {
        name: {
            "images/s": round(1e3 * IMAGES / statistics.median(values), 2),
            "times 50-steps": round(statistics.median(a / b for a, b in zip(first, values, strict=True)), 2),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, for pairs, trainings and results")
    parser.add_argument("--only", choices=("pairs", "reid", "speed"), action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="ReID trainings at once")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    wanted, out = options.only or ("pairs", "reid", "speed"), options.out
    world = out / "world"
    build_world(world, WorldSpec())
    photos = external_photos(world)
    engine = engine_of(out, photos) if {"pairs", "speed"} & set(wanted) else None
    if "pairs" in wanted:
        assert engine is not None
        for name, setting in SETTINGS.items():
            made, summary = make_pairs(engine, photos, world / "market", out / "pairs" / name, setting)
            write_json(
                out / "pairs" / f"{name}.json", [[str(s.path), s.pid, s.camera] for s in made if s.modality == "ir"]
            )
            print(name, summary.images, summary.seconds, flush=True)
    facts = {"machine": f"{processor()}, {os.cpu_count()} cores", "versions": versions(PACKAGES), "commit": commit()}
    if "reid" in wanted:
        made_by = {
            name: [Sample(Path(path), pid, camera, "synthetic", "ir") for path, pid, camera in read_json(file, "pairs")]
            for name in SETTINGS
            if (file := out / "pairs" / f"{name}.json").exists()
        }
        comparison = usefulness(out, world, made_by, tuple(range(options.seeds)), options.workers)
        arms = {arm.name: {"mAP": arm.map, "gap closed": arm.gap_closed} for arm in comparison.arms}
        write_json(out / "usefulness.json", {**facts, "baseline": comparison.baseline, "arms": arms})
    if "speed" in wanted:
        assert engine is not None
        rates = speed(engine, options.repeats)
        write_json(out / "speed.json", {**facts, "repeats": options.repeats, "rates": rates})
        print(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
