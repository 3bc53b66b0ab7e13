"""`dive-fast demo`: the walk on the pocket world, and a page of its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dive_fast.experiments.arms import oracle_infrared
from dive_fast.experiments.config import DemoConfig
from dive_fast.experiments.pipeline import Walk, make_pairs, run_walk
from dive_fast.models import load_adapter
from dive_fast.reid.comparison.table import header, notes, rows
from dive_fast.report import html
from dive_fast.types import PairMode, Sample

_HOW_TO = """# the same with Stable Diffusion 1.5 (SD15), SYSU-MM01 and Market-1501; that size wants a GPU
dive-fast personalize --model SD15 --photos sysu:SYSU-MM01 --photos market:Market-1501,prefix=1 \\
    --identity-steps 0 --rank 128 --steps 400000 --lora-lr 5e-5 --token-lr 5e-5 --out runs/adapter
dive-fast fuse --model SD15 --adapter runs/adapter --out runs/fused
dive-fast export --model runs/fused --out runs/engine
dive-fast plan --model runs/engine --photos market:Market-1501,prefix=1 --steps 50 --guidance 7.5 \\
    --out runs/plan.json
dive-fast synth --plan runs/plan.json --engine runs/engine --out runs/pairs
dive-fast verify runs/pairs
dive-fast report runs/pairs --out runs/report
dive-fast reid train --real sysu:SYSU-MM01 --synthetic runs/pairs --out runs/reid
dive-fast reid eval --checkpoint runs/reid --test sysu:SYSU-MM01 --protocol sysu"""


_OTHER_MODES: dict[PairMode, str] = {"synthetic": "both sides generated", "photo-guided": "from its photo"}


def run_demo(out: Path, config: DemoConfig) -> Path:
    """Runs the demo in `out`, or resumes it, and returns the path of its page."""
    walk = run_walk(config, out)
    pids = sorted({s.pid for s in walk.photos})
    known = set() if config.adapter is None else {identity.pid for identity in load_adapter(config.adapter).identities}
    new = [pid for pid in pids if pid not in known]
    shown = [*new, *(pid for pid in pids if pid in known)][: config.shown]
    others = {}
    with walk.timings.stage("pairs in the other two modes"):
        photos = [s for s in walk.photos if s.pid in shown]
        for mode in _OTHER_MODES:
            pairs = replace(config.pairs, mode=mode, per_camera=1)
            others[mode], _ = make_pairs(walk.engine, photos, walk.world / "market", out / f"pairs-{mode}", pairs)
    oracle = oracle_infrared(walk.world, 1)
    identities = [_identity(walk, others, oracle, pid, pid in new) for pid in shown]
    return _page(out, walk, len(new), identities)


def _of(samples: Sequence[Sample], pid: str, camera: str | None = None) -> list[Sample]:
    return [s for s in samples if s.pid == pid and (camera is None or s.camera == camera)]


def _identity(
    walk: Walk, others: dict[PairMode, list[Sample]], oracle: Sequence[Sample], pid: str, new: bool
) -> html.PictureRow:
    """An identity's photos, generated images and true infrared."""
    cells: list[html.Cell | None] = [html.Cell(s.path, "photo it learned from") for s in _of(walk.photos, pid)[:2]]
    cells.append(None)
    for camera in ("cam3", "cam6"):
        cells += [html.Cell(s.path, f"made, {camera}", made=True) for s in _of(walk.infrared, pid, camera)[:2]]
    cells.append(None)
    cells += [html.Cell(s.path, f"true infrared, {s.camera} (never seen)") for s in _of(oracle, pid)]
    for mode, name in _OTHER_MODES.items():
        cells.append(None)
        made = _of(others[mode], pid)[:2]
        cells += [html.Cell(s.path, f"{name}, {s.camera}", made=True) for s in made]
    return html.PictureRow(pid, "learned live" if new else "known to the shipped adapter", cells)


def _page(out: Path, walk: Walk, new: int, identities: Sequence[html.PictureRow]) -> Path:
    lead = (
        f"{len({s.pid for s in walk.photos})} identities whom the model has seen in RGB only, {new} of them"
        f" learned just now, in infrared by an exported engine: {walk.summary.images:,} images,"
        f" {walk.summary.images_per_second:.1f} per second."
    )
    seconds = [[stage, f"{value:.1f} s"] for stage, value in walk.timings.seconds.items()]
    return html.write_page(
        out / "index.html",
        "RGB-infrared pairs from identities learned in RGB",
        lead,
        html.section(
            "Pairs, identity by identity",
            html.paragraph("Green frames mark generated images; the rest are photos of the pocket world."),
            *map(html.picture_row, identities),
        ),
        html.section(
            "Did they help a ReID model?",
            html.paragraph(
                "All arms train alike and differ in the images of identities without infrared photos. They are evaluated on"
                " held-out identities: infrared queries, RGB gallery. One seed and few steps are noisy; the README has the"
                " study with three seeds."
            ),
            html.table(header(walk.comparison), rows(walk.comparison), mark="ours"),
            *(html.paragraph(note) for note in notes(walk.comparison)),
            html.plot(out / "compare" / "compare.png", "mean average precision by arm"),
        ),
        html.section(
            "Where the time went", html.table(["stage", "time"], seconds), html.paragraph(walk.engine.describe())
        ),
        html.section("With your own model and data", html.code(_HOW_TO)),
    )
