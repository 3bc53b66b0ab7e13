"""`make demo`: the main job end to end on the pocket world, and a page that shows what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dive_fast.experiments.arms import BASELINES, build_arms, external_photos, heldout_sides, oracle_infrared
from dive_fast.experiments.pipeline import PairConfig, Timings, build_engine, learn_missing, make_pairs
from dive_fast.models import load_adapter
from dive_fast.reid.comparison.compare import Comparison, compare
from dive_fast.reid.comparison.table import HEADER, notes, rows
from dive_fast.reid.training.train import ReidConfig
from dive_fast.report import html
from dive_fast.synth.local import Summary
from dive_fast.train.personalize import PersonalizeConfig
from dive_fast.types import PairMode, Sample
from dive_fast.world.trees import WorldSpec, build_world

_HOW_TO = """# the same with Stable Diffusion 1.5 (SD15), SYSU-MM01 and Market-1501; that size wants a GPU
dive-fast personalize --model SD15 --paired SYSU-MM01 --external Market-1501 --external-prefix 1 \\
    --identity-steps 0 --rank 128 --steps 400000 --lora-lr 5e-5 --token-lr 5e-5 --out runs/adapter
dive-fast fuse --model SD15 --adapter runs/adapter --out runs/fused
dive-fast export --model runs/fused --out runs/engine
dive-fast plan --model runs/engine --photos Market-1501 --photos-prefix 1 --steps 50 --guidance 7.5 \\
    --out runs/plan.json
dive-fast synth --plan runs/plan.json --engine runs/engine --out runs/pairs
dive-fast verify runs/pairs
dive-fast report runs/pairs --out runs/report
dive-fast reid train --real SYSU-MM01 --synthetic runs/pairs --out runs/reid
dive-fast reid eval --checkpoint runs/reid --data SYSU-MM01 --protocol sysu"""


@dataclass(frozen=True)
class DemoConfig:
    """Sizes that keep the demo within minutes on two cores. Some external identities are new to the adapter."""

    world: WorldSpec = field(
        default_factory=lambda: WorldSpec(test_ids=24, external_ids=40, images_per_camera=5, market_images=8)
    )
    model: str = "pocket"
    adapter: str = "pocket"
    learn: PersonalizeConfig = field(
        default_factory=lambda: PersonalizeConfig(steps=60, batch=16, save_every=50, mix_lr=0.01, words_from="pocket")
    )
    pairs: PairConfig = field(default_factory=lambda: PairConfig(per_camera=3, steps=16))
    shown: int = 8  # identities that are also made in the other two ways
    reid: ReidConfig = field(default_factory=lambda: ReidConfig(steps=350, missing="visible", synthetic_share=0.25))
    workers: int = 2  # ReID runs at once


@dataclass(frozen=True)
class _Made:
    """What the page shows."""

    world: Path
    photos: list[Sample]
    new: list[str]
    shown: list[str]
    infrared: list[Sample]  # of mode real-rgb
    others: dict[PairMode, list[Sample]]


def run_demo(out: Path, config: DemoConfig) -> Path:
    """Runs or resumes the demo in `out` and returns the path of its page."""
    timings = Timings()
    world = out / "world"
    with timings.stage("render the world"):
        build_world(world, config.world)
    photos = external_photos(world)
    known = {identity.pid for identity in load_adapter(config.adapter).identities}
    people = sorted({s.pid for s in photos})
    new = [pid for pid in people if pid not in known]
    with timings.stage(f"learn {len(new)} new people (RGB only)"):
        adapter = learn_missing(config.model, config.adapter, photos, out / "adapter", config.learn)
    with timings.stage("fuse and export to ONNX"):
        engine = build_engine(config.model, adapter, out, config.pairs.rows)
    with timings.stage("make pairs (onnxruntime)"):
        ours, summary = make_pairs(engine, photos, world / "market", out / "pairs", config.pairs)
    shown = [*new, *(pid for pid in people if pid in known)][: config.shown]
    others: dict[PairMode, list[Sample]] = {}
    with timings.stage("make pairs in the other two ways"):
        few = [s for s in photos if s.pid in shown]
        modes: tuple[PairMode, ...] = ("synthetic", "photo-guided")
        for mode in modes:
            pairs = replace(config.pairs, mode=mode, per_camera=1)
            others[mode], _ = make_pairs(engine, few, world / "market", out / f"pairs-{mode}", pairs)
    query, gallery = heldout_sides(world)
    with timings.stage("train and evaluate ReID, every arm"):
        arms = build_arms(world, out, ours, config.pairs.per_camera)
        comparison = compare(
            arms, query, gallery, config.reid, (0,), out / "compare", baseline=BASELINES, workers=config.workers
        )
    made = _Made(world, photos, new, shown, ours, others)
    return _page(out, made, timings, comparison, engine.describe(), summary)


def _of(samples: Sequence[Sample], pid: str, camera: str | None = None) -> list[Sample]:
    return [s for s in samples if s.pid == pid and (camera is None or s.camera == camera)]


def _person(made: _Made, oracle: Sequence[Sample], pid: str) -> html.PictureRow:
    """What the model saw of a person, what it made, and what it never saw."""
    cells: list[html.Cell | None] = [html.Cell(s.path, "photo it learned from") for s in _of(made.photos, pid)[:2]]
    cells.append(None)
    for camera in ("cam3", "cam6"):
        cells += [html.Cell(s.path, f"made, {camera}", made=True) for s in _of(made.infrared, pid, camera)[:2]]
    cells.append(None)
    cells += [html.Cell(s.path, f"true infrared, {s.camera} (never seen)") for s in _of(oracle, pid)]
    names: dict[PairMode, str] = {"synthetic": "both sides made", "photo-guided": "from its photo"}
    for mode, samples in made.others.items():
        cells.append(None)
        cells += [html.Cell(s.path, f"{names[mode]}, {s.camera}", made=True) for s in _of(samples, pid)[:2]]
    return html.PictureRow(pid, "learned live" if pid in made.new else "known to the shipped adapter", cells)


def _page(out: Path, made: _Made, timings: Timings, comparison: Comparison, engine: str, summary: Summary) -> Path:
    oracle = oracle_infrared(made.world, 1)
    lead = (
        f"{len({s.pid for s in made.photos})} people whom the model has seen in RGB only, {len(made.new)} of them "
        f"learned just now, in infrared made by an exported engine: {summary.images:,} images, "
        f"{summary.images_per_second:.1f} a second."
    )
    return html.write_page(
        out / "index.html",
        "RGB-infrared pairs from identities learned in RGB",
        lead,
        html.section(
            "Pairs, identity by identity",
            html.paragraph("Green frames mark generated images; the rest are photos of the pocket world."),
            *(html.picture_row(_person(made, oracle, pid)) for pid in made.shown),
        ),
        html.section(
            "Did they help a ReID model?",
            html.paragraph(
                "The same training, told different things about the people without infrared photos, then evaluated on "
                "held-out people: infrared queries, RGB gallery. One seed and few steps here, so expect noise; the "
                "study with three seeds stands in the README."
            ),
            html.table(HEADER, rows(comparison), mark="ours"),
            *(html.paragraph(note) for note in notes(comparison)),
            html.plot(out / "compare" / "compare.png", "mean average precision by arm"),
        ),
        html.section(
            "Where the time went",
            html.table(["stage", "time"], [[stage, f"{value:.1f} s"] for stage, value in timings.seconds.items()]),
            html.paragraph(engine),
        ),
        html.section("With your own model and data", html.code(_HOW_TO)),
    )
