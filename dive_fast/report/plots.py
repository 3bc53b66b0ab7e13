"""Plots of a gallery: scores by camera, and images a second over time; an SVG each for light and dark pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import atomic_encode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dive_fast.report.chunks import Columns
    from dive_fast.report.rows import ScoreKey
    from dive_fast.report.tally import ScoreTally
    from dive_fast.report.throughput import Throughput

_FEWEST_BINS, _MOST_BINS = 12, 60
_THEMES = {"light": ("#22272e", "#e5e7eb"), "dark": ("#d6dbe1", "#3a424c")}  # ink, grid
_COLOURS = ("#4c8bd6", "#2a9d8f", "#e08e45", "#b86bd1", "#d65f5f", "#8a9a3b", "#7f8fa6", "#c2a83e")
MOST_CURVES = len(_COLOURS)
SIDE_NAMES = {"rgb": "RGB", "ir": "infrared", "pair": "pair"}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def plot_scores(
    folder: Path, scores: Mapping[ScoreKey, ScoreTally], cameras: Sequence[str], columns: Columns
) -> list[dict[str, str]]:
    """A histogram for each score with a curve per camera, read block by block from the columns on disk."""
    return [_plot_score(folder, key, score, cameras, columns) for key, score in sorted(scores.items())]


def _plot_score(
    folder: Path, key: ScoreKey, score: ScoreTally, cameras: Sequence[str], columns: Columns
) -> dict[str, str]:
    low, high = float(np.float32(score.low)), float(np.float32(score.high))  # as the columns have it
    bins = int(np.clip(score.count**0.5 / 2, _FEWEST_BINS, _MOST_BINS))
    edges = np.linspace(low, high, bins + 1) if low < high else np.linspace(low - 0.5, low + 0.5, bins + 1)
    counts = camera_histograms(key, score, edges, len(cameras), columns)
    used = [camera for camera in range(len(cameras)) if counts[camera].any()]
    shown = sorted(used, key=lambda camera: -counts[camera].sum())[:MOST_CURVES]
    title = f"{SIDE_NAMES[key.side]}: {key.name}"
    for theme in _THEMES:
        with _figure(folder / f"{score.column}-{theme}.svg", theme, title) as axes:
            for camera, colour in zip(sorted(shown), _COLOURS, strict=False):
                axes.stairs(counts[camera], edges, label=_plain(cameras[camera]), color=colour, linewidth=1.5)
            axes.set_ylabel("pairs" if key.side == "pair" else "images")
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=8, labelcolor=_THEMES[theme][0])
    left = len(used) - len(shown)
    alt = f"Histogram of {title} by camera, {score.count:,} values from {score.low:.4g} to {score.high:.4g}"
    return {"name": score.column, "alt": f"{alt}; {left} cameras with fewer are left out" if left else alt}


def camera_histograms(
    key: ScoreKey, score: ScoreTally, edges: NDArray[np.float64], cameras: int, columns: Columns
) -> NDArray[np.int64]:
    """Counts [cameras, bins] of a score between edges [bins + 1], by its side's camera (a pair's: the infrared one)."""
    counts = np.zeros((cameras, len(edges) - 1), np.int64)
    for block in columns.blocks[score.column]:
        values = columns.read(score.column, block)
        camera = columns.read("rgb" if key.side == "rgb" else "ir", block)
        there = ~np.isnan(values)
        bins = np.clip(np.searchsorted(edges, values[there], "right") - 1, 0, len(edges) - 2)
        np.add.at(counts, (camera[there], bins), 1)
    return counts


def plot_throughput(folder: Path, rates: Throughput) -> dict[str, str]:
    """Images a second, by hours since the first shard was written."""
    hours = (rates.edges - rates.edges[0]) / 3600
    for theme in _THEMES:
        with _figure(folder / f"throughput-{theme}.svg", theme, "Images a second, pauses included") as axes:
            axes.stairs(rates.rate, hours, fill=True, color=_COLOURS[0], alpha=0.85)
            axes.axhline(rates.mean, color=_THEMES[theme][0], linewidth=1, linestyle=(0, (4, 3)))
            axes.set_xlabel(f"hours since {when(float(rates.edges[0]))}")
            axes.set_ylabel("images/s")
            axes.set_ylim(bottom=0)
    return {"name": "throughput", "alt": f"Images a second over {hours[-1]:.2g} hours, {rates.mean:.3g} on average"}


def when(at: float) -> str:
    """Unix seconds as a date and time."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


@contextmanager
def _figure(path: Path, theme: str, title: str) -> Iterator[Axes]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ink, grid = _THEMES[theme]
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "dive-fast"}):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.set_title(_plain(title), loc="left", color=ink, fontsize=10)
        axes.grid(axis="y", color=grid, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="both", length=0, labelcolor=ink, labelsize=8)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(ink)
            label.set_fontsize(8)
        axes.patch.set_alpha(0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(grid)
        options: dict[str, Any] = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
        atomic_encode(path, lambda stream: figure.savefig(stream, **options))


def _plain(text: str) -> str:
    """Text that matplotlib sets literally: no formulas, control characters or hidden labels."""
    text = re.sub(r"[^\x20-\x7e\xa0-\uffff]|[\ud800-\udfff]", "?", text)[:80].replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
