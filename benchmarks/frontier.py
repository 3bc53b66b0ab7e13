"""What speed costs in usefulness, on the pocket world: `python -m benchmarks.frontier --out FOLDER` (hours; it resumes).

FOLDER and the options are a study's (`dive-fast world study`), new or finished: its world, adapter, engine, scorer and
trainings are used, and made where they are missing. Results lie in FOLDER/frontier. Presets (dive_fast/sampling/config.py)
are chosen from them.

Every setting makes infrared of the same identities from the same noise. Identity kept judges all of them: the loss against
50 steps is paired over identities, and stands beside the smallest loss that would have shown. Beside it stand brightness
against the truth, and diversity: how far images of one identity and camera lie from each other in the features of the net
that judges, over those of 50 steps. The settings of `--reid` also train ReID, where the loss is one of the gap between
paired-only and oracle. The rate is that of the whole loop on a batch, all settings in interleaved rounds, on a machine that
does nothing else.

`--engines` adds engines of the same identities as settings, each with its model's own sampling and by its folder's name: of
a student (`dive-fast distil`), of FP8 (`dive-fast quantize`), of people who were learned in another way.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
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
from dive_fast.experiments.scorer import BOXES, brightness, correlations, measured_once, train_scorer, true_infrared
from dive_fast.experiments.study import open_study
from dive_fast.io import atomic_write, write_json
from dive_fast.json_files import read_json
from dive_fast.models.sampling_file import read_sampling
from dive_fast.options import call
from dive_fast.quality.kept import IdentityKept, Kept, kept_by_camera, kept_difference, open_scorer
from dive_fast.quality.measures import unit
from dive_fast.reid.comparison.compare import compare
from dive_fast.reid.comparison.records import Comparison, Rate
from dive_fast.reid.comparison.significance import paired_t, visible_difference
from dive_fast.sampling import Sampling
from dive_fast.sampling.config import SD15
from dive_fast.settings import PositiveInt
from dive_fast.synth import manifest
from dive_fast.synth.clock import StageClock
from dive_fast.synth.render import Renderer
from dive_fast.types import InputError, Sample, to_dict
from dive_fast.world.trees import build_world

FIRST = "50-steps"  # what the others are held against
SETTINGS = {
    **{f"{steps}-steps": Sampling(steps) for steps in (50, 15, 7, 5, 4, 3)},
    **{
        f"15-steps-guidance-{scale}": Sampling(15, guidance=scale)
        for scale in (1, 2, 3, 4)
        if scale != Sampling.guidance  # the default, which plain settings have
    },
    "15-steps-interval": Sampling(15, guidance_interval=(0.3, 6.0)),
}
Setting = Literal[tuple(SETTINGS)]
Part = Literal["pairs", "kept", "reid", "speed", "summary"]
LIMIT = 0.10  # of the gap: a setting that surely loses less is accepted, one that surely loses more is refused
IMAGES = 16  # of a timed batch


def frontier(
    out: Annotated[Path, "A study's folder, new or finished; results go to OUT/frontier."],
    config: StudyConfig,
    only: Annotated[tuple[Part, ...], "Parts to do."] = get_args(Part),
    settings: Annotated[tuple[Setting, ...], "Settings to measure beside 50 steps."] = tuple(SETTINGS),
    engines: Annotated[tuple[Path, ...], "Engines that are settings, too."] = (),
    reid: Annotated[
        tuple[str, ...], "Settings that ReID is trained on, beside 50 steps; by default those of --engines."
    ] = (),
    repeats: Annotated[PositiveInt, "Interleaved rounds of the speed part."] = 5,
) -> None:
    """Measure what fewer steps, guidance and engines cost in identity kept and gap closed, and gain in time."""
    with open_study(config, out):
        build_world(out / "world", config.world, progress=True)
        study = Frontier(config, out, settings, engines)
        trained = (FIRST, *(reid or study.engines))
        if unknown := sorted({*trained} - {*study.settings}):
            raise InputError(f"frontier: {unknown[0]} is no setting; give some of {', '.join(study.settings)}")
        if "pairs" in only:
            study.make_pairs()
        if "kept" in only:
            study.measure()
        if "reid" in only:
            write_json(study.work / "reid.json", study.train(trained))
        if "speed" in only:
            write_json(study.work / "speed.json", study.speed(repeats))
        if "summary" in only:
            summary = {**metadata(("torch", "onnxruntime", "numpy")), **study.summarise()}
            write_json(study.work / "frontier.json", summary)
            atomic_write(study.work / "frontier.md", table(summary))
            print(table(summary))


class Frontier:
    """The settings on a study's model. Raises `InputError` for two of one name."""

    def __init__(self, config: StudyConfig, out: Path, settings: Sequence[str], engines: Sequence[Path]) -> None:
        self.config, self.out, self.work = config, out, out / "frontier"
        self.engines = {folder.name: folder for folder in engines}
        if len({*SETTINGS, *self.engines}) < len(SETTINGS) + len(engines):
            raise InputError(f"frontier: engines need folders of different names, and none of {', '.join(SETTINGS)}")
        self.settings = {name: sampling for name, sampling in SETTINGS.items() if name in (FIRST, *settings)}
        self.settings |= {name: read_sampling(folder) or SD15 for name, folder in self.engines.items()}

    @cached_property
    def own(self) -> Engine:
        """The study's engine; an adapter and an engine that are missing are made."""
        adapter = study_adapter(self.config, self.out / "world", self.out)
        _, engine = exported(self.config.model, adapter, self.out, self.config.pairs.rows)
        return load_engine(engine, "onnxruntime", "cpu")

    def open(self, setting: str) -> Engine:
        folder = self.engines.get(setting)
        return self.own if folder is None else load_engine(folder, "onnxruntime", "cpu")

    def make_pairs(self) -> None:
        photos, root = external_photos(self.out / "world"), self.out / "world" / "market"
        for name, sampling in self.settings.items():
            pairs = replace(self.config.pairs, sampling=sampling)
            make_pairs(self.open(name), photos, root, self.work / name, pairs)

    def infrared(self, setting: str) -> list[Sample]:
        made = manifest.read_pairs(self.work / setting)
        return [sample for sample in made if sample.source == "synthetic" and sample.modality == "ir"]

    def measure(self) -> None:
        """Writes what the scorer finds of every setting, and its PSNR to `FIRST`, once for the same images and scorer."""
        scorer = train_scorer(self.out / "world", self.out / "scorer", self.config.scorer)
        _, gallery = true_infrared(self.out / "world", self.config.pairs.per_camera)
        first = self.infrared(FIRST)
        for name in self.settings:
            made = self.infrared(name)

            def measure(made: list[Sample] = made) -> dict[str, Any]:
                alone = made == first
                return {**measured(scorer, made, gallery), "psnr": None if alone else mean_psnr(made, first)}

            sets = {"made": made, "first": first, "gallery": gallery}
            measured_once(self.work / "kept" / f"{name}.json", scorer, sets, measure)

    def train(self, settings: Sequence[str]) -> dict[str, Any]:
        """Compares paired-only and oracle of the study with an arm ours of each setting; see `losses`."""
        config, world = self.config, self.out / "world"
        if len(config.seeds) < 2:
            raise InputError("frontier: an interval of the gap lost needs at least two --seeds")
        folder = self.work / "compare"
        folder.mkdir(parents=True, exist_ok=True)
        for arm in (BASELINE, "oracle"):  # the study's own: trained once for both
            (self.out / "compare" / arm).mkdir(parents=True, exist_ok=True)
            if not (folder / arm).exists():
                (folder / arm).symlink_to(Path("..", "..", "compare", arm))
        per_camera = config.pairs.per_camera
        found = {name: build_arms(world, self.out, self.infrared(name), per_camera) for name in settings}
        arms = {arm: found[FIRST][arm] for arm in (BASELINE, "oracle")}
        arms |= {name: of_setting["ours"] for name, of_setting in found.items()}
        what = (arms, *heldout_sides(world), config.reid, config.seeds, folder)
        against_first = compare(*what, baseline=FIRST, workers=config.workers)
        of_record = compare(*what, baseline=BASELINE)  # trains nothing again
        return losses(of_record, against_first, [name for name in settings if name != FIRST])

    def speed(self, repeats: int) -> dict[str, Any]:
        """Images a second of every setting, and how many times as fast as `FIRST`, in rounds."""
        count = min(self.config.pairs.rows // 2, IMAGES)
        runs = {name: loop(self.open(name), sampling, count) for name, sampling in self.settings.items()}
        times = interleaved(runs, repeats)
        rates = {
            name: {"rate": 1e3 * count / statistics.median(values), "times": median_ratio(times[FIRST], values)}
            for name, values in times.items()
        }
        return {"repeats": repeats, "images": count, "settings": rates}

    def summarise(self) -> dict[str, Any]:
        """What is measured of each setting, without rows of identities; reid and speed may be missing."""
        reid, rates = (
            read_json(path, path.stem) if path.exists() else {"settings": {}}
            for path in (self.work / "reid.json", self.work / "speed.json")
        )
        paths = {name: self.work / "kept" / f"{name}.json" for name in self.settings}
        found = {name: read_json(path, "identity kept")["found"] for name, path in paths.items()}
        kept = {name: read_kept(one["kept"]) for name, one in found.items()}
        rows = {
            name: {
                "sampling": self.label(name),
                "psnr": found[name]["psnr"],
                "brightness": found[name]["brightness"],
                "diversity": found[name]["spread"] / found[FIRST]["spread"] if found[FIRST]["spread"] else None,
                "kept": kept[name].summary(),
                "kept_lost": None if name == FIRST else to_dict(kept_difference(kept[FIRST], kept[name])),
                "reid": reid["settings"].get(name),
                "speed": rates["settings"].get(name),
            }
            for name in self.settings
        }
        return {"gap": reid.get("gap"), "seeds": reid.get("seeds"), "settings": rows}

    def label(self, setting: str) -> str:
        sampling = self.settings[setting].describe()
        return f"{setting}: {sampling}" if setting in self.engines else sampling


def measured(scorer: Path, made: Sequence[Sample], gallery: Sequence[Sample]) -> dict[str, Any]:
    """Identity kept of images among the true ones `gallery`, correlations of brightness with them, and their spread."""
    net = open_scorer(scorer, made, gallery)
    ours, theirs = (net.features(samples, None) for samples in (made, gallery))
    pids = {sample.pid for sample in made}
    known = [sample for sample in gallery if sample.pid in pids]
    return {
        "kept": to_dict(kept_by_camera(made, ours, gallery, theirs)["all"]),
        "brightness": correlations(brightness(made), brightness(known)),
        "spread": spread(ours, [(sample.pid, sample.camera) for sample in made]),
    }


def spread(features: NDArray[np.floating], labels: Sequence[object]) -> float | None:
    """The mean cosine distance between two rows of one label, over labels of two rows and more; None without any."""
    rows: dict[object, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    groups = [unit(features[some]).astype(np.float64) for some in rows.values() if len(some) > 1]
    alike = [(np.square(group.sum(axis=0)).sum() - len(group)) / (len(group) * (len(group) - 1)) for group in groups]
    return 1 - statistics.fmean(alike) if alike else None


def mean_psnr(made: Sequence[Sample], first: Sequence[Sample]) -> float:
    """PSNR in dB of images to those in the same places, by the mean square difference of all."""

    def pixels(sample: Sample) -> NDArray[np.float64]:
        return np.asarray(open_image(sample.path), dtype=np.float64)[None]

    squares = [worst_rms(pixels(a), pixels(b)) ** 2 for a, b in zip(made, first, strict=True)]
    return psnr(statistics.fmean(squares) ** 0.5)


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


def loop(engine: Engine, sampling: Sampling, images: int) -> Callable[[], object]:
    """Noise to pixels for so many images of as many identities, by the renderer of synthesis."""
    plan = bench_plan(engine, images, sampling, identities=images)
    start = start_batch(plan, engine, images, ("ir",))
    renderer = Renderer(engine, plan, StageClock("encode", "denoise", "decode"))
    renderer.use_prompts(job.key for job in start.jobs)
    return lambda: renderer.images(start)


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
    light = [row["brightness"][box] for box in BOXES]  # JSON has them in another order
    cells |= {", ".join(BOXES): ", ".join("-" if value is None else f"{value:.3f}" for value in light)}
    cells |= {"diversity": "-" if row["diversity"] is None else f"{row['diversity']:.3f}"}
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
