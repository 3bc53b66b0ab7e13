"""A gallery of a whole dataset: a folder whose index.html loads chunks of data and packs of thumbnails on demand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dive_fast.io import atomic_write, clear_disk_errors
from dive_fast.outputs import claim_folder
from dive_fast.progress import ProgressBar
from dive_fast.report import thumbs
from dive_fast.report.chunks import BLOCK, RECORDS, write_chunk
from dive_fast.report.config import ReportConfig
from dive_fast.report.plots import can_plot, plot_scores, plot_throughput, when
from dive_fast.report.rows import DatasetRows, Meaning, score_meanings
from dive_fast.report.tally import STATUS
from dive_fast.report.throughput import TIMES, Throughput, read_times, throughput
from dive_fast.report.walk import Walk
from dive_fast.synth.manifest import DROPPED
from dive_fast.types import InputError
from dive_fast.words import count

FORMAT = 1
PAGE = ("icon.svg", "gallery.css", "gallery.js", "index.html")  # the last makes the gallery complete
NO_PLOTS = "no plots: matplotlib is not installed; pip install 'dive-fast[report]', then rerun"


@dataclass(frozen=True)
class GallerySummary:
    """The result of `write_gallery`: counts of `missing` and `damaged` images, and of new packs (`packs_made`)."""

    page: Path
    pairs: int
    planned: int
    missing: int
    damaged: int
    packs: int
    packs_made: int
    notes: list[str]


def write_gallery(
    dataset: Path,
    out: Path,
    config: ReportConfig = ReportConfig(),
    *,
    problems: Sequence[str] | None = None,
    progress: bool = True,
) -> GallerySummary:
    """Writes the gallery of `dataset` into the folder `out`; a rerun makes only the thumbnails that changed.

    `problems` are what verify found; None if it did not run. Raises `InputError` for a dataset without finished pairs, and
    for an `out` that holds anything else.
    """
    rows = DatasetRows(dataset)
    meanings = score_meanings(dataset)
    if next((True for shard in rows if shard.rows), None) is None:
        raise InputError(f"dataset {dataset} has no finished pair yet; run synth again")
    claim = {"format": FORMAT, "plan_id": rows.plan.plan_id}
    with claim_folder(out, "report.json", claim, "report", [rows.dataset]), clear_disk_errors(out):
        walk = Walk(rows, out)
        packs = thumbs.make_packs(walk.jobs(), config.workers or thumbs.default_workers())
        with ProgressBar(total=len(rows.plan.pairs), desc="report", unit="pair", disable=not progress) as bar:
            for pack in packs:
                walk.add(pack)
                bar.update(len(pack.flaws))
        walk.finish()
        missing = walk.images_with(tuple(thumbs.MISSING.values()))
        damaged = walk.images_with(tuple(thumbs.DAMAGED.values()))
        notes = _notes(rows, walk, missing, damaged)
        rates = throughput(read_times(dataset) or walk.events)
        plots: list[dict[str, str]] = []
        if can_plot():
            plots = plot_scores(out / "plots", walk.tally.scores, list(walk.tally.cameras), walk.numbers)
            plots += [] if rates is None else [plot_throughput(out / "plots", rates)]
        index = {
            **_metadata(rows, walk, out),
            "missing": missing,
            "damaged": damaged,
            "scores": _scores(walk, meanings),
            "throughput": _throughput_metadata(dataset, rates),
            "plots": plots,
            "problems": None if problems is None else list(problems),
            "notes": notes if can_plot() else [*notes, NO_PLOTS],
        }
        data = {"identities": list(walk.tally.identities), "people": _people(walk), "index": index}
        for name, value in data.items():
            write_chunk(out / "data", name, value)
        walk.remove_others(set(data))
        for name in PAGE:
            atomic_write(out / name, (Path(__file__).parent / "page" / name).read_bytes())
    pairs, planned = walk.tally.pairs, len(rows.plan.pairs)
    return GallerySummary(
        out / "index.html", pairs, planned, missing, damaged, walk.packs, walk.packs_made, index["notes"]
    )


def _metadata(rows: DatasetRows, walk: Walk, out: Path) -> dict[str, Any]:
    plan, tally = rows.plan, walk.tally
    settings = ("plan_id", "mode", "model_fingerprint", "seed", "precision", "strength", "height", "width")
    return {
        "title": rows.dataset.resolve().name,
        "root": _address(rows.dataset, out),
        "pairs": tally.pairs,
        "planned": len(plan.pairs),
        "made": list(plan.sides),
        "plan": [
            ["sampling", plan.sampling.describe()],
            *([name, str(getattr(plan, name))] for name in settings if getattr(plan, name) is not None),
        ],
        "engines": tally.engines.most_common(),
        "identity_count": len(tally.identities),
        "cameras": list(tally.cameras),
        "camera_status": tally.status_by_camera,
        "statuses": [[name, tally.status[name]] for name in STATUS],
        "reasons": [[kind, tally.kind_counts[kind]] for kind in tally.kinds],
        "block": BLOCK,
        "chunk": RECORDS,
        "pack": {"pairs": thumbs.PACK, "across": thumbs.ACROSS, "width": thumbs.CELL[0], "height": thumbs.CELL[1]},
    }


def _address(dataset: Path, out: Path) -> str:
    """The dataset's URL relative to the page, without the last slash."""
    try:
        return quote(os.fsencode(os.path.relpath(dataset.resolve(), out.resolve()).replace(os.sep, "/")))
    except ValueError:  # another drive of Windows
        return dataset.resolve().as_uri()


def _notes(rows: DatasetRows, walk: Walk, missing: int, damaged: int) -> list[str]:
    planned, pairs = len(rows.plan.pairs), walk.tally.pairs
    strays = rows.strays[DROPPED]
    found = {
        f"unfinished: {pairs:,} of {planned:,} planned pairs are made; run synth again to finish it": pairs < planned,
        f"{count(missing, 'image')} missing; dive-fast verify says which": missing,
        f"{count(damaged, 'image')} damaged; dive-fast verify says which": damaged,
        f"dropped.jsonl names {count(strays, 'pair')} of another dataset; filter again": strays,
    }
    return [note for note, true in found.items() if true]


def _scores(walk: Walk, meanings: dict[str, Meaning]) -> list[dict[str, Any]]:
    return [
        {
            **key._asdict(),
            **asdict(meanings.get(key.name, Meaning())),
            "column": score.column,
            "blocks": walk.numbers.blocks[score.column],
            "count": score.count,
            "mean": score.total / score.count,
            "low": score.low,
            "high": score.high,
        }
        for key, score in sorted(walk.tally.scores.items())
    ]


def _throughput_metadata(dataset: Path, rates: Throughput | None) -> dict[str, Any] | None:
    if rates is None:
        return None
    return {
        "source": TIMES if (dataset / TIMES).exists() else "the times of the shard files",
        "images": rates.images,
        "mean": rates.mean,
        "seconds": rates.seconds,
        "start": when(float(rates.edges[0])),
        "end": when(float(rates.edges[-1])),
    }


def _people(walk: Walk) -> dict[str, Any]:
    """Pairs by status and pairs by camera, by identity number."""
    tally = walk.tally
    cameras = [[0] * len(tally.cameras) for _ in tally.identities]
    for (pid, camera), pairs in tally.cells.items():
        cameras[pid][camera] = pairs
    return {"status": tally.status_by_identity, "cameras": cameras}
