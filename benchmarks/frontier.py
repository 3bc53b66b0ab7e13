"""What speed costs in usefulness, on the pocket world: `python -m benchmarks.frontier --out FOLDER` (hours; it resumes).

FOLDER and the options are a study's (`dive-fast world study`), new or finished: its world, adapter, engine, scorer and
trainings are used, and made where they are missing. Results lie in FOLDER/frontier. Presets (dive_fast/sampling/config.py)
are chosen from them.

Every setting makes infrared of the same identities from the same noise. Identity kept judges all of them: the loss against
50 steps is paired over identities, and stands beside the smallest loss that would have shown. The settings of `--reid` also
train ReID, where the loss is one of the gap between paired-only and oracle. The rate is that of the whole loop on a batch,
all settings in interleaved rounds, on a machine that does nothing else.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import interleaved, median_ratio, metadata
from dive_fast.bench.batch import bench_plan, start_batch
from dive_fast.bench.parity import psnr, worst_rms
from dive_fast.data.images import open_image
from dive_fast.engines import Engine, load_engine
from dive_fast.experiments.arms import BASELINE, build_arms, external_photos, heldout_sides
from dive_fast.experiments.config import StudyConfig
from dive_fast.experiments.pipeline import exported, make_pairs, study_adapter
from dive_fast.experiments.scorer import measured_once, train_scorer, true_infrared
from dive_fast.experiments.study import open_study
from dive_fast.io import atomic_write, write_json
from dive_fast.json_files import read_json
from dive_fast.options import call
from dive_fast.quality.kept import IdentityKept, Kept, kept_difference, kept_of_samples
from dive_fast.reid.comparison.compare import compare
from dive_fast.reid.comparison.records import Comparison, Rate
from dive_fast.reid.comparison.significance import paired_t, visible_difference
from dive_fast.sampling import Sampling
from dive_fast.settings import PositiveInt
from dive_fast.synth import manifest
from dive_fast.synth.clock import StageClock
from dive_fast.synth.render import Renderer
from dive_fast.types import InputError, Sample, to_dict
from dive_fast.world.trees import build_world

FIRST = "50-steps"  # what the others are held against
FP8 = "-fp8"  # by the exported engine with FP8 layers, which a CPU only simulates: its rate says nothing
SETTINGS = {
    **{f"{steps}-steps": Sampling(steps) for steps in (50, 25, 15, 10, 7, 5, 4, 3)},
    **{
        f"15-steps-guidance-{scale}": Sampling(15, guidance=scale)
        for scale in (1, 2, 3, 4, 6)
        if scale != Sampling.guidance  # the default, which plain settings have
    },
    "15-steps-interval": Sampling(15, guidance_interval=(0.3, 6.0)),
    f"7-steps{FP8}": Sampling(7),
}
Part = Literal["pairs", "kept", "reid", "speed", "summary"]
Setting = Literal[tuple(SETTINGS)]
LIMIT = 0.10  # of the gap: a setting that surely loses less is accepted, one that surely loses more is refused
IMAGES = 16  # of a timed batch


def frontier(
    out: Annotated[Path, "A study's folder, new or finished; results go to OUT/frontier."],
    config: StudyConfig,
    only: Annotated[tuple[Part, ...], "Parts to do."] = get_args(Part),
    reid: Annotated[tuple[Setting, ...], "Settings that ReID is trained on, beside 50 steps."] = (
        "15-steps",
        "7-steps-fp8",
        "3-steps",
    ),
    repeats: Annotated[PositiveInt, "Interleaved rounds of the speed part."] = 5,
) -> None:
    """Measure what fewer steps, guidance and FP8 cost in identity kept and gap closed, and gain in time."""
    work = out / "frontier"
    with open_study(config, out):
        build_world(out / "world", config.world, progress=True)
        if "pairs" in only:
            make_all_pairs(config, out)
        if "kept" in only:
            measure_kept(config, out)
        if "reid" in only:
            write_json(work / "reid.json", train(config, out, (FIRST, *reid)))
        if "speed" in only:
            write_json(work / "speed.json", speed(open_engine(config, out), config.pairs.rows // 2, repeats))
        if "summary" in only:
            summary = {**metadata(("torch", "onnxruntime", "numpy")), **summarise(work)}
            write_json(work / "frontier.json", summary)
            atomic_write(work / "frontier.md", table(summary))
            print(table(summary))


def open_engine(config: StudyConfig, out: Path, eight_bit: bool = False) -> Engine:
    """The study's engine, or the same with FP8 layers."""
    from dive_export.fp8_engine import quantize_engine

    fused, engine = exported(config.model, study_adapter(config, out / "world", out), out, config.pairs.rows)
    quantised = engine.with_name(f"fp8-{engine.name}")
    if eight_bit and not quantised.is_dir():
        quantize_engine(engine, fused, quantised)
    return load_engine(quantised if eight_bit else engine, "onnxruntime", "cpu")


def make_all_pairs(config: StudyConfig, out: Path) -> None:
    engines = [open_engine(config, out, eight_bit) for eight_bit in (False, True)]
    photos, root = external_photos(out / "world"), out / "world" / "market"
    for name, sampling in SETTINGS.items():
        pairs = replace(config.pairs, sampling=sampling)
        make_pairs(engines[name.endswith(FP8)], photos, root, out / "frontier" / name, pairs)


def infrared(out: Path, setting: str) -> list[Sample]:
    made = manifest.read_pairs(out / "frontier" / setting)
    return [sample for sample in made if sample.source == "synthetic" and sample.modality == "ir"]


def measure_kept(config: StudyConfig, out: Path) -> None:
    """Writes identity kept of every setting and PSNR to the images of `FIRST`, once for the same images and scorer."""
    scorer = train_scorer(out / "world", out / "scorer", config.scorer)
    _, gallery = true_infrared(out / "world", config.pairs.per_camera)
    first = infrared(out, FIRST)
    for name in SETTINGS:
        made = infrared(out, name)

        def measure(made: list[Sample] = made) -> dict[str, Any]:
            kept = kept_of_samples(scorer, made, gallery)["all"]
            return {"kept": to_dict(kept), "psnr": None if made == first else mean_psnr(made, first)}

        sets = {"made": made, "first": first, "gallery": gallery}
        measured_once(out / "frontier" / "kept" / f"{name}.json", scorer, sets, measure)


def mean_psnr(made: Sequence[Sample], first: Sequence[Sample]) -> float:
    """PSNR in dB of images to those in the same places, by the mean square difference of all."""

    def pixels(sample: Sample) -> NDArray[np.float64]:
        return np.asarray(open_image(sample.path), dtype=np.float64)[None]

    squares = [worst_rms(pixels(a), pixels(b)) ** 2 for a, b in zip(made, first, strict=True)]
    return psnr(statistics.fmean(squares) ** 0.5)


def train(config: StudyConfig, out: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Compares paired-only and oracle of the study with an arm ours of each setting; see `losses`."""
    if len(config.seeds) < 2:
        raise InputError("frontier: an interval of the gap lost needs at least two --seeds")
    folder = out / "frontier" / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    for arm in (BASELINE, "oracle"):  # the study's own: trained once for both
        (out / "compare" / arm).mkdir(parents=True, exist_ok=True)
        if not (folder / arm).exists():
            (folder / arm).symlink_to(Path("..", "..", "compare", arm))
    found = {name: build_arms(out / "world", out, infrared(out, name), config.pairs.per_camera) for name in settings}
    arms = {arm: found[FIRST][arm] for arm in (BASELINE, "oracle")}
    arms |= {name: of_setting["ours"] for name, of_setting in found.items()}
    what = (arms, *heldout_sides(out / "world"), config.reid, config.seeds, folder)
    against_first = compare(*what, baseline=FIRST, workers=config.workers)
    of_record = compare(*what, baseline=BASELINE)  # trains nothing again
    return losses(of_record, against_first, [name for name in settings if name != FIRST])


def losses(of_record: Comparison, against_first: Comparison, settings: Sequence[str]) -> dict[str, Any]:
    """Gap closed of `FIRST` and `settings`, and the fraction of the gap that each of these loses against `FIRST`.

    The loss has a 95 % interval over seeds and one over test identities; `smallest` is the loss that shows over seeds with
    power 0.8. `gap` is the oracle's mAP above paired-only; if it is not above 0 there is no loss of it.
    """
    gap = of_record.arm("oracle").difference_mean
    arms = {name: of_record.arm(name) for name in (FIRST, *settings)}
    rows = {name: {"map": arm.map, "gap_closed": arm.gap_closed_mean} for name, arm in arms.items()}
    for name in settings if gap > 0 else ():
        arm = against_first.arm(name)
        lost, people = [-difference / gap for difference in arm.difference], arm.significance.people
        _, low, high = paired_t(lost)
        rows[name]["lost"] = {"value": statistics.fmean(lost), "low": low, "high": high}
        rows[name]["people"] = {"value": -people.mean / gap, "low": -people.high / gap, "high": -people.low / gap}
        rows[name]["smallest"] = visible_difference(lost)
    return {"gap": gap, "seeds": len(of_record.seeds), "settings": rows}


def speed(engine: Engine, most: int, repeats: int) -> dict[str, Any]:
    """Images a second of every setting, and how many times as fast as `FIRST`, in rounds."""
    count = min(most, IMAGES)
    runs = {name: loop(engine, sampling, count) for name, sampling in SETTINGS.items() if not name.endswith(FP8)}
    times = interleaved(runs, repeats)
    rates = {
        name: {"rate": 1e3 * count / statistics.median(values), "times": median_ratio(times[FIRST], values)}
        for name, values in times.items()
    }
    return {"repeats": repeats, "images": count, "settings": rates}


def loop(engine: Engine, sampling: Sampling, images: int) -> Callable[[], object]:
    """Noise to pixels for so many images of as many identities, by the renderer of synthesis."""
    plan = bench_plan(engine, images, sampling, identities=images)
    start = start_batch(plan, engine, images, ("ir",))
    renderer = Renderer(engine, plan, StageClock("encode", "denoise", "decode"))
    renderer.use_prompts(job.key for job in start.jobs)
    return lambda: renderer.images(start)


def summarise(work: Path) -> dict[str, Any]:
    """What is measured of each setting, without rows of identities; reid and speed may be missing."""
    reid, rates = (
        read_json(path, path.stem) if path.exists() else {"settings": {}}
        for path in (work / "reid.json", work / "speed.json")
    )
    found = {name: read_json(work / "kept" / f"{name}.json", "identity kept")["found"] for name in SETTINGS}
    kept = {name: read_kept(one["kept"]) for name, one in found.items()}
    rows = {
        name: {
            "sampling": sampling.describe() + ", FP8" * name.endswith(FP8),
            "psnr": found[name]["psnr"],
            "kept": kept[name].summary(),
            "kept_lost": None if name == FIRST else to_dict(kept_difference(kept[FIRST], kept[name])),
            "reid": reid["settings"].get(name),
            "speed": rates["settings"].get(name),
        }
        for name, sampling in SETTINGS.items()
    }
    return {"gap": reid.get("gap"), "seeds": reid.get("seeds"), "settings": rows}


def read_kept(found: dict[str, Any]) -> Kept:
    rates = {name: Rate(**found[name]) for name in ("by_image", "by_identity")}
    return Kept(**{**found, **rates, "each": tuple(IdentityKept(**one) for one in found["each"])})


def table(summary: dict[str, Any]) -> str:
    """Markdown."""
    rows = [columns(row) for row in summary["settings"].values()]
    heads = list(dict.fromkeys(name for row in rows for name in row))
    lines = [heads, ["---"] * len(heads), *([row.get(name, "") for name in heads] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def columns(row: dict[str, Any]) -> dict[str, str]:
    """The cells of a setting, all fractions in percent."""
    cells = {"setting": row["sampling"]}
    if row["speed"] is not None:
        cells |= {"images/s": f"{row['speed']['rate']:.2f}", "times 50 steps": f"{row['speed']['times']:.2f}"}
    kept, lost, reid = row["kept"], row["kept_lost"], row["reid"]
    cells |= {"identity kept by image": percent(kept["by_image"]), "by identity": percent(kept["by_identity"])}
    if lost is not None:
        image = lost["by_image"]
        cells |= {"lost by image": percent(image, "+"), "smallest visible": f"{100 * image['smallest']:.1f}"}
        cells |= {"PSNR to 50 steps": f"{row['psnr']:.1f}"}
    if reid is not None:
        closed = "-" if reid["gap_closed"] is None else f"{100 * reid['gap_closed']:.0f}"
        cells |= {"mAP": f"{statistics.fmean(reid['map']):.1f}", "gap closed": closed}
    if reid is not None and "lost" in reid:
        cells |= {"gap lost, over seeds": percent(reid["lost"], "+"), "over people": percent(reid["people"], "+")}
        cells |= {"smallest visible loss": f"{100 * reid['smallest']:.0f}", f"loss of {LIMIT:.0%}": verdict(reid)}
    return cells


def percent(rate: dict[str, float], sign: str = "") -> str:
    value, low, high = (f"{100 * rate[name]:{sign}.1f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def verdict(reid: dict[str, Any]) -> str:
    """Whether both intervals of the gap lost exclude a loss of `LIMIT`, or both exclude a smaller one."""
    if max(reid["lost"]["high"], reid["people"]["high"]) < LIMIT:
        return "accepted"
    return "refused" if min(reid["lost"]["low"], reid["people"]["low"]) > LIMIT else "open"


if __name__ == "__main__":
    call(frontier, sys.argv[1:], "python -m benchmarks.frontier")
