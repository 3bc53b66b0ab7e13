"""What speed costs in usefulness, on the pocket world: `python -m benchmarks.frontier --out FOLDER` (hours; it resumes).

Every setting of steps and guidance interval makes infrared for the same people from the same noise; a ReID net is
trained on each, with several seeds, beside the arms without synthetic infrared and with the true one. Against the gap closed
stands the rate, of the whole loop on batches of 16 images, all settings in turns. As seeds differ by more than settings do,
two measures of the images themselves stand beside it, which have next to no noise: how near they are to those of 50 steps,
and how well a person's brightness follows the true infrared. Presets (dive_fast/sampling/config.py) are chosen from this.

`--only pairs`, `likeness`, `reid`, `speed` or `summary` does a part; speed is measured on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import interleaved, median_ratio, metadata
from dive_fast.bench.batch import bench_plan, start_batch
from dive_fast.bench.parity import psnr, worst_rms
from dive_fast.data.images import open_image
from dive_fast.engines import Engine, load_engine
from dive_fast.experiments.arms import BASELINE, build_arms, external_photos, heldout_sides, oracle_infrared
from dive_fast.experiments.config import PairConfig, StudyConfig
from dive_fast.experiments.pipeline import learn_missing, make_pairs
from dive_fast.io import atomic_write, read_json, write_json
from dive_fast.models import fuse, load_bundle, save_bundle
from dive_fast.reid.comparison.compare import compare
from dive_fast.reid.comparison.significance import paired_t
from dive_fast.reid.training.config import ReidConfig
from dive_fast.sampling import PRESETS, Sampling
from dive_fast.synth.clock import StageClock
from dive_fast.synth.render import Renderer
from dive_fast.types import Sample
from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world

PARTS = ("pairs", "likeness", "reid", "speed", "summary")
FIRST = "50-steps"  # what the others are held against
STRIPES = {"torso": (0.2, 0.5), "legs": (0.5, 0.85)}  # of an image's height; its middle half in width
PACKAGES = ("torch", "diffusers", "numpy")
ROWS, IMAGES = 32, 16
BASE = PairConfig(per_camera=3, rows=ROWS)
WIDE, NARROW = (0.3, 6.0), (0.6, 3.0)
SETTINGS = {
    **{f"{steps}-steps": Sampling(steps) for steps in (50, 25, 15, 10, 7, 5, 4, 3)},
    "25-steps-wide": Sampling(25, guidance_interval=WIDE),
    "25-steps-narrow": Sampling(25, guidance_interval=NARROW),
    "15-steps-wide": Sampling(15, guidance_interval=WIDE),
    "10-steps-wide": Sampling(10, guidance_interval=WIDE),
    "7-steps-fp8": Sampling(7),
}
FP8 = "-fp8"  # by the exported engine with FP8 layers, which a CPU only simulates: its rate says nothing
# Of the others the images alone are compared: where they lie between two of these, training says nothing new.
TRAINED = (FIRST, "25-steps", "15-steps", "10-steps", "7-steps", "5-steps", "3-steps", "25-steps-wide", "7-steps-fp8")


def sampling(setting: str, guidance: float) -> Sampling:
    """How a setting samples with this scale of guidance."""
    return replace(SETTINGS[setting], guidance=guidance)


def fused_model(out: Path, photos: list[Sample]) -> Path:
    """The folder of the shipped base with everybody learned and fused in."""
    adapter = learn_missing("pocket", "pocket", photos, out / "adapter", StudyConfig().learn)
    fused = out / f"fused-{adapter.fingerprint[:12]}"
    if not fused.is_dir():
        save_bundle(fuse(load_bundle("pocket"), adapter), fused)
    return fused


def compiled(fused: Path) -> Engine:
    return load_engine(fused, "torch-compiled", device="cpu")


def eight_bit(fused: Path) -> Engine:
    """The exported engine with FP8 layers, by onnxruntime."""
    from dive_export import GraphOptions, export_engine
    from dive_export.fp8_engine import quantize_engine

    exported, quantised = fused.with_name(f"exported-{fused.name}"), fused.with_name(f"fp8-{fused.name}")
    export_engine(fused, exported, rows_max=ROWS, options=GraphOptions("kv-cache"))
    if not quantised.is_dir():
        quantize_engine(exported, fused, quantised)
    return load_engine(quantised, "onnxruntime", device="cpu")


def brightness(path: Path, stripe: tuple[float, float]) -> float:
    """Mean grey level of a person's stripe."""
    grey = np.asarray(open_image(path).convert("L"), dtype=np.float64)
    height, width = grey.shape
    return float(grey[round(stripe[0] * height) : round(stripe[1] * height), width // 4 : -(width // 4)].mean())


def likeness(world: Path, made: dict[str, list[Sample]]) -> dict[str, dict[str, float]]:
    """PSNR in dB against the same image of `FIRST`, mean over images; and for each stripe Pearson's correlation over people
    of generated with true brightness.
    """
    people = sorted({s.pid for s in made[FIRST]})
    truth = [s for s in oracle_infrared(world, BASE.per_camera) if s.pid in people]

    def levels(samples: list[Sample], stripe: tuple[float, float]) -> list[float]:
        by_person: dict[str, list[float]] = {pid: [] for pid in people}
        for sample in samples:
            by_person[sample.pid].append(brightness(sample.path, stripe))
        return [statistics.fmean(by_person[pid]) for pid in people]

    found: dict[str, dict[str, float]] = {}
    for setting, samples in made.items():
        found[setting] = {
            f"{name} correlation": statistics.correlation(levels(truth, stripe), levels(samples, stripe))
            for name, stripe in STRIPES.items()
        }
        if setting != FIRST:
            pairs = zip(pixels(samples), pixels(made[FIRST]), strict=True)
            found[setting]["dB to 50 steps"] = statistics.fmean(psnr(worst_rms(one, other)) for one, other in pairs)
    return found


def pixels(samples: list[Sample]) -> Iterator[np.ndarray]:
    return (np.asarray(open_image(sample.path), dtype=np.float64)[None] for sample in samples)


def summarise(out: Path) -> list[dict[str, Any]]:
    """A record a setting, fastest last. `gap lost` is against `FIRST`, seed by seed, over the mean gap of the oracle."""
    rates, alike = read_json(out / "speed.json", "speed")["rates"], read_json(out / "likeness.json", "likeness")
    arms, baseline, gap = scores(out)
    return [
        {
            "setting": name,
            "sampling": f"{sampling(name, alike['guidance']).describe()}{', FP8' if name.endswith(FP8) else ''}",
            **rates.get(name, {}),
            **near,
            **(worth(arms[name], arms[FIRST], baseline, gap) if name in arms else {}),
        }
        for name, near in sorted(
            alike["settings"].items(), key=lambda item: rates.get(item[0], {}).get("images/s", math.inf)
        )
    ]


def scores(out: Path) -> tuple[dict[str, list[float]], float, float]:
    """mAP of every arm by seed; the mean of the baseline of record, and how far the oracle's is above it."""
    record = read_json(out / "usefulness.json", "usefulness")
    arms = {name: arm["mAP"] for name, arm in record["arms"].items()}
    baseline = statistics.fmean(arms[record["baseline"]])
    return arms, baseline, statistics.fmean(arms["oracle"]) - baseline


def between(values: list[float]) -> list[float]:
    """Student's interval of their mean at 95 %."""
    return list(paired_t(values)[1:])


def effects(out: Path) -> dict[str, dict[str, Any]]:
    """What a saving costs in gap closed, over all trained settings that have it, which tells more than any one of them:
    a value a seed, their mean and its interval. "halving the steps" is the least-squares slope over log2 of the steps of the
    settings that save nothing else; the others are against the same steps without the saving.
    """
    arms, _, gap = scores(out)
    plain = [name for name in TRAINED if name.removesuffix("-steps").isdecimal()]
    doublings = [math.log2(SETTINGS[name].steps) for name in plain]
    found = {
        "halving the steps": [
            statistics.linear_regression(doublings, [arms[name][seed] / gap for name in plain]).slope
            for seed in range(len(arms[FIRST]))
        ]
    }
    for saving in ("-wide", FP8):
        pairs = [(name.removesuffix(saving), name) for name in TRAINED if name.endswith(saving)]
        lost = [[(a - b) / gap for a, b in zip(arms[one], arms[other], strict=True)] for one, other in pairs]
        found[saving.removeprefix("-")] = [statistics.fmean(by_seed) for by_seed in zip(*lost, strict=True)]
    return {
        name: {"gap lost": statistics.fmean(values), "95 %": between(values), "by seed": values}
        for name, values in found.items()
    }


def worth(by_seed: list[float], first: list[float], baseline: float, gap: float) -> dict[str, Any]:
    """Of mAP by seed: gap closed, and what is lost of it against `FIRST` with the same seed."""
    closed = [(score - baseline) / gap for score in by_seed]
    lost = [(other - score) / gap for other, score in zip(first, by_seed, strict=True)]
    return {
        "seeds": len(by_seed),
        "mAP": statistics.fmean(by_seed),
        "gap closed": statistics.fmean(closed),
        "standard error": statistics.stdev(closed) / math.sqrt(len(closed)),
        "gap lost": statistics.fmean(lost),
        "gap lost, 95 %": between(lost),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = "setting|images/s|times 50 steps|mAP|gap closed|gap lost against 50 steps (95 %)|dB to 50 steps|torso, legs"
    lines = [f"| {heads.replace('|', ' | ')} |", "|---" * (heads.count("|") + 1) + "|"]
    for row in rows:
        timed = "images/s" in row
        cells = [
            row["sampling"],
            *((f"{row['images/s']:.2f}", f"{row['times 50-steps']:.2f}") if timed else ("on a GPU only", "")),
            *(_worth_cells(row) if "mAP" in row else ("not trained", "", "")),
            f"{row['dB to 50 steps']:.1f}" if "dB to 50 steps" in row else "",
            f"{row['torso correlation']:.3f}, {row['legs correlation']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _worth_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    low, high = row["gap lost, 95 %"]
    lost = "" if row["setting"] == FIRST else f"{row['gap lost']:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"{row['mAP']:.1f}", f"{row['gap closed']:.2f} ± {row['standard error']:.2f}", lost


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Gap closed, with its standard error, against images a second; presets by name."""
    from dive_fast.bench.plots import COLOURS, INK, figure

    presets = {f"{preset.sampling.steps}-steps": preset.name for preset in PRESETS.values()}
    with figure(path, "What speed costs: gap closed on the pocket world (bars: standard error)", height=4.4) as axes:
        for row in (row for row in rows if "mAP" in row and "images/s" in row):
            name, at = presets.get(row["setting"]), (row["images/s"], row["gap closed"])
            axes.errorbar(*at, yerr=row["standard error"], fmt="o", capsize=3, color=COLOURS[2 if name else 0])
            words = f"{row['setting']}{f' = {name}' if name else ''}"
            shift = (5, 5 if row["setting"].endswith("-steps") else -11)
            axes.annotate(words, at, xytext=shift, textcoords="offset points", fontsize=7, color=INK)
        axes.set_xscale("log")
        ticks = [2, 3, 5, 8, 12, 20, 30]
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_xticks([], minor=True)
        axes.set(xlabel="images/s (logarithmic)", ylabel="gap closed")


def usefulness(out: Path, world: Path, made: dict[str, list[Sample]], seeds: tuple[int, ...], workers: int) -> Any:
    """One comparison: the arms of a study, and an arm of each setting."""
    query, gallery = heldout_sides(world)
    found = {name: build_arms(world, out, made[name], BASE.per_camera) for name in TRAINED}
    arms = {arm: found[TRAINED[-1]][arm] for arm in (BASELINE, "rgb-only", "oracle")}
    arms |= {name: arms_of["ours"] for name, arms_of in found.items()}
    config = ReidConfig(steps=1000, missing="visible", synthetic_fraction=0.25, precision="bf16")
    return compare(arms, query, gallery, config, seeds, out / "compare", baseline=BASELINE, workers=workers)


def loop(engine: Engine, setting: Sampling) -> Callable[[], object]:
    """Noise to pixels for `IMAGES` images of as many people, by the renderer of synthesis."""
    plan = bench_plan(engine, IMAGES, setting, identities=IMAGES)
    start = start_batch(plan, engine, IMAGES, ("ir",))
    renderer = Renderer(engine, plan, StageClock("encode", "denoise", "decode"))
    renderer.use_prompts(job.key for job in start.jobs)
    return lambda: renderer.images(start)


def speed(engine: Engine, repeats: int) -> dict[str, Any]:
    """Images a second of every setting, and how many times as fast as 50 steps, turn by turn."""
    runs = {name: loop(engine, setting) for name, setting in SETTINGS.items() if not name.endswith(FP8)}
    times = interleaved(runs, repeats)
    return {
        name: {
            "images/s": round(1e3 * IMAGES / statistics.median(values), 2),
            "times 50-steps": median_ratio(times[FIRST], values),
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the study, for pairs, trainings and results")
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--guidance", type=float, default=Sampling.guidance, help="scale of guidance of all settings")
    parser.add_argument("--people", type=int, help="pairs of the first so many people only; too few to train on")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="ReID trainings at once")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    wanted, out = options.only or PARTS, options.out
    world = out / "world"
    build_world(world, WorldSpec())
    photos = external_photos(world)
    if "pairs" in wanted:
        fused = fused_model(out, photos)
        plain, quantised = compiled(fused), eight_bit(fused)
        few = sorted({photo.pid for photo in photos})[: options.people]
        some = [photo for photo in photos if photo.pid in few]
        for name in SETTINGS:
            setting = replace(BASE, sampling=sampling(name, options.guidance))
            engine = quantised if name.endswith(FP8) else plain
            made, summary = make_pairs(engine, some, world / "market", out / "pairs" / name, setting)
            infrared = [[str(s.path), s.pid, s.camera] for s in made if s.modality == "ir"]
            write_json(out / "pairs" / f"{name}.json", infrared)
            print(name, summary.images, summary.seconds, flush=True)
    facts = metadata(PACKAGES)
    made_by = {
        name: [Sample(Path(path), pid, camera, "synthetic", "ir") for path, pid, camera in read_json(file, "pairs")]
        for name in SETTINGS
        if (file := out / "pairs" / f"{name}.json").exists()
    }
    if "likeness" in wanted:
        write_json(out / "likeness.json", {**facts, "guidance": options.guidance, "settings": likeness(world, made_by)})
    if "reid" in wanted:
        missing = [name for name in TRAINED if name not in made_by]
        if missing:
            parser.error(f"--only reid: no pairs were made for {', '.join(missing)}; run --only pairs first")
        comparison = usefulness(out, world, made_by, tuple(range(options.seeds)), options.workers)
        arms = {arm.name: {"mAP": arm.map, "gap closed": arm.gap_closed} for arm in comparison.arms}
        write_json(out / "usefulness.json", {**facts, "baseline": comparison.baseline, "arms": arms})
    if "speed" in wanted:
        rates = speed(compiled(fused_model(out, photos)), options.repeats)
        write_json(out / "speed.json", {**facts, "repeats": options.repeats, "rates": rates})
    if "summary" in wanted:
        rows = summarise(out)
        write_json(out / "frontier.json", {"settings": rows, "effects": effects(out)})
        atomic_write(out / "frontier.md", table(rows))
        picture(rows, out / "frontier.png")
        print(table(rows))


if __name__ == "__main__":
    main()
