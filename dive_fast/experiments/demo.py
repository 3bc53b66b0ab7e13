"""`dive-fast demo`: the walk on the pocket world, and a page of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dive_fast.experiments import findings
from dive_fast.experiments.arms import oracle_infrared
from dive_fast.experiments.config import DemoConfig, PairConfig
from dive_fast.experiments.networks import SEEN, open_networks
from dive_fast.experiments.pipeline import Walk, make_pairs, run_walk
from dive_fast.reid.comparison.records import Arm, Comparison
from dive_fast.reid.comparison.table import format_std, header, notes, rows
from dive_fast.report import html
from dive_fast.synth.manifest import read_pairs
from dive_fast.types import MODALITIES, Modality, PairMode, Sample
from dive_fast.words import count

HOW_TO = """# the same with Stable Diffusion 1.5 (SD15), SYSU-MM01 and Market-1501; that size wants a GPU
dive-fast prepare --photos sysu:SYSU-MM01 --photos market:Market-1501,prefix=1 --min-images 12 --tall \\
    --model SD15 --out runs/prepared
dive-fast personalize --recipe dive --model SD15 --prepared runs/prepared --out runs/adapter
dive-fast fuse --model SD15 --adapter runs/adapter --out runs/fused
dive-fast export --model runs/fused --out runs/engine
dive-fast plan --model runs/engine --photos market:Market-1501,prefix=1 --out runs/plan.json
dive-fast synth --plan runs/plan.json --engine runs/engine --out runs/pairs
dive-fast verify runs/pairs
dive-fast report runs/pairs --out runs/report
dive-fast reid train --real sysu:SYSU-MM01 --synthetic runs/pairs --out runs/reid
dive-fast reid eval --checkpoint runs/reid --test sysu:SYSU-MM01 --protocol sysu"""

PAGE_NAME = "index.html"
LEARNING = 2.8  # seconds a person: `personalize` with 60 steps, two cores of an AMD EPYC (docs/log.md)
_PAIR_MODES: tuple[PairMode, ...] = ("synthetic", "photo-guided")  # shown beside the walk's own, real-rgb
_COLUMNS = (
    ("photo", "RGB only"),
    ("our infrared", "cameras 3 and 6"),
    ("true infrared", "same cameras, never seen"),
    ("both sides generated", "RGB and infrared"),
    ("from a photo", "photo, its infrared"),
)
_ADDED = {"grey": "grey copies as infrared", "ours": "our infrared", "oracle": "their true infrared"}


@dataclass(frozen=True)
class Demo:
    """The demo's page, and in two sentences what its comparison shows and what it cannot show."""

    page: Path
    result: str
    limits: str


def run_demo(out: Path, config: DemoConfig) -> Demo:
    """Runs the demo in `out`, or resumes it, and writes its page. Raises as `open_networks`, before any work."""
    adapter, _ = open_networks(config, strangers=True)
    walk = run_walk(config, out)
    pids = sorted({s.pid for s in walk.photos})
    known = set() if adapter is None else {identity.pid for identity in adapter.identities}
    new = [pid for pid in pids if pid not in known]
    shown = [*new, *(pid for pid in pids if pid in known)][: config.shown]
    with walk.timings.stage("pairs in the other two modes"):
        pairs = {mode: _pairs(walk, shown, out / f"pairs-{mode}", config.pairs, mode) for mode in _PAIR_MODES}
    oracle = oracle_infrared(walk.world, 1)
    people = [_person(walk, pairs, oracle, pid, pid in new, config.pairs.infrared) for pid in shown]
    found = Demo(out / PAGE_NAME, findings.result(walk.comparison), findings.limits(walk.comparison))
    taught = 0 if adapter is None else len(adapter.metadata[SEEN])
    _write(found, walk, len(new), None not in (config.adapter, config.encoder), people, taught)
    return found


def _pairs(walk: Walk, pids: Sequence[str], out: Path, config: PairConfig, mode: PairMode) -> list[Sample]:
    """Both sides of one pair per identity and infrared camera."""
    photos = [s for s in walk.photos if s.pid in pids]
    make_pairs(walk.engine, photos, walk.world / "market", out, replace(config, mode=mode, per_camera=1))
    return read_pairs(out)


def _first(samples: Sequence[Sample], pid: str, modality: Modality, camera: str | None = None) -> Sample:
    return next(s for s in samples if s.pid == pid and s.modality == modality and camera in (None, s.camera))


def _person(
    walk: Walk,
    pairs: dict[PairMode, list[Sample]],
    oracle: Sequence[Sample],
    pid: str,
    new: bool,
    cameras: Sequence[str],
) -> html.ColumnRow:
    """An identity's pictures in the order of `_COLUMNS`."""
    columns = [
        [_first(walk.photos, pid, "rgb")],
        [_first(walk.infrared, pid, "ir", camera) for camera in cameras],
        [_first(oracle, pid, "ir", camera) for camera in cameras],
        *([_first(pairs[mode], pid, side) for side in MODALITIES] for mode in _PAIR_MODES),
    ]
    cells = [
        [html.Cell(s.path, f"{title}, {s.camera}", made=s.source == "synthetic") for s in column]
        for (title, _), column in zip(_COLUMNS, columns, strict=True)
    ]
    return html.ColumnRow(pid, "added live" if new else "known to the adapter", cells)


def _bar(comparison: Comparison, arm: Arm) -> html.Bar:
    base, top = findings.ends(comparison)
    kinds: dict[str, html.BarKind] = {base.name: "baseline", top.name: "oracle", "ours": "ours"}
    shared = min(other.identities for other in comparison.arms)
    note = f"and {arm.identities - shared} people with {_ADDED.get(arm.name, 'RGB photos only')}"
    if arm.identities == shared:
        note = f"{shared} people with RGB and infrared photos"
    return html.Bar(
        arm.name, note, arm.map_mean, format_std(arm.map_mean, arm.map_deviation), kinds.get(arm.name, "plain")
    )


def _write(found: Demo, walk: Walk, new: int, encoded: bool, people: Sequence[html.ColumnRow], taught: int) -> None:
    """Writes the page; `taught` is the number of identities from whose infrared photos a given adapter has learned."""
    comparison = walk.comparison
    base, _ = findings.ends(comparison)
    teachers = f" Our infrared comes from an adapter that learned it from {taught} people, more than {base.name} has."
    html.write_page(
        found.page,
        "RGB-infrared pairs of people seen in RGB only",
        f"The model knows {count(len({s.pid for s in walk.photos}), 'person')} from RGB photos; {new} of them were added"
        f" just now. An exported engine then drew {count(len(walk.infrared), 'infrared image')} of them.",
        html.section(
            "Do the images help a re-identification model?",
            html.paragraph(found.result, "finding"),
            html.bar_chart([_bar(comparison, arm) for arm in comparison.arms]),
            html.paragraph(
                "mAP in %: 100 would rank every true match first. The same model trains on each set and searches"
                f" {comparison.gallery:,} RGB photos of other people by {comparison.queries:,} infrared ones. The dashed"
                f" line marks {base.name}.",
                "soft",
            ),
            html.paragraph(found.limits + (teachers if taught > base.identities else "")),
        ),
        html.section(
            "The images, person by person",
            html.paragraph(
                "A green bar marks a generated image; the others are photos of the pocket world, a small rendered data set."
            ),
            html.picture_table(_COLUMNS, people),
        ),
        html.section(
            "All numbers",
            html.details(
                "Table and statistics",
                html.table(header(comparison), rows(comparison), mark="ours"),
                *(html.paragraph(note) for note in notes(comparison)),
            ),
        ),
        html.section("Where the time went", *_times(walk, new if encoded else 0)),
        html.section("With your own model and photos", html.code(HOW_TO)),
    )


def _times(walk: Walk, encoded: int) -> list[str]:
    """Seconds of each stage, what the encoder saves, the engine's speed; a resumed run skips finished work."""
    saved = (
        f"An encoder read the words of {count(encoded, 'new person')} off their photos. Learning them step by step takes"
        f" about {encoded * LEARNING:.0f} s on two CPU cores."
    )
    seconds = [[stage, f"{value:.1f} s"] for stage, value in walk.timings.seconds.items()]
    speed = f"The engine drew {walk.summary.images_per_second:.1f} images per second."
    skipped = "An earlier run had finished part of the work; these are the times of the last run."
    return [
        html.table(["stage", "time"], seconds),
        *([html.paragraph(saved)] if encoded else []),
        *([html.paragraph(speed)] if walk.summary.images else []),
        *([html.paragraph(skipped)] if walk.summary.resumed_shards else []),
        html.details("The engine", html.paragraph(walk.engine.describe())),
    ]
