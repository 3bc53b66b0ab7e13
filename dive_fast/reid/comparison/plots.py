"""A comparison as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.environment.optional import optional
from dive_fast.io import atomic_encode
from dive_fast.reid.comparison.records import Comparison
from dive_fast.reid.comparison.table import format_std

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#22272e", "#6b7280", "#e5e7eb"
_BASELINE, _ORACLE, _ARM = "#9ca3af", "#2a9d8f", "#3b6fb6"


def require_matplotlib() -> Any:
    """Returns `matplotlib.figure`; raises `DiveError` without matplotlib, so callers can check before training."""
    return optional("matplotlib.figure", "a picture")


def new_figure(width: float, height: float, dpi: int) -> tuple[Figure, Axes]:
    """Returns an empty figure of that size in inches, and its axes."""
    figure: Figure = require_matplotlib().Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    return figure, figure.add_subplot()


def save_figure(figure: Figure, path: Path | str) -> None:
    """Writes a figure as PNG."""
    atomic_encode(path, lambda stream: figure.savefig(stream, format="png", facecolor="white"))


def plot_comparison(comparison: Comparison, path: Path | str) -> None:
    """Writes a PNG: a bar per arm (mean mAP), a dot per seed, and the gap to the oracle that each arm closes."""
    arms = comparison.arms
    figure, axes = new_figure(8.2, 1.7 + 0.62 * len(arms), 160)
    colours = {comparison.baseline: _BASELINE, comparison.oracle: _ORACLE}
    for row, arm in enumerate(arms):
        axes.barh(row, arm.map_mean, height=0.56, color=colours.get(arm.name, _ARM), alpha=0.85, zorder=2)
        count = len(arm.map)
        heights = [row + 0.16 * (2 * i - count + 1) / max(1, count - 1) for i in range(count)]
        axes.scatter(arm.map, heights, s=26, color="white", edgecolor=_INK, linewidth=1.0, zorder=4)
        label = format_std(arm.map_mean, arm.map_deviation)
        if arm.gap_closed_mean is not None:
            label += f"   ({100 * arm.gap_closed_mean:.0f} % of the gap)"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        _annotate(axes, label, (max([arm.map_mean, *arm.map]), row), 9, bbox=box)
    for name, colour in colours.items():
        if name is not None:
            axes.axvline(comparison.arm(name).map_mean, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    _style(axes, [comparison.label(arm.name) for arm in arms])
    axes.set_xlim(0, max(1.0, max(max(arm.map) for arm in arms) * 1.34))
    axes.set_xlabel("mAP in %, bar: mean, dots: seeds", color=_MUTED, fontsize=9)
    title = f"Person retrieval by training set: {comparison.dataset}, {comparison.direction}"
    axes.set_title(title, loc="left", color=_INK, fontsize=11)
    save_figure(figure, path)


def plot_differences(comparison: Comparison, path: Path | str) -> None:
    """Writes a PNG: each arm's mAP difference to the baseline, a dot per seed, with both 95 % intervals of the mean."""
    arms = [(a, a.significance, a.difference) for a in comparison.arms if a.significance and a.difference is not None]
    figure, axes = new_figure(8.2, 1.9 + 0.62 * len(arms), 160)
    axes.axvline(0, color=_BASELINE, linewidth=1.2, zorder=1)
    for row, (arm, significance, difference) in enumerate(arms):
        colour = _ORACLE if arm.name == comparison.oracle else _ARM
        for test, shift, width in ((significance.seeds, -0.14, 1.6), (significance.people, 0.14, 4.5)):
            if test is not None:
                bounds, height = [test.low, test.high], row + shift
                axes.plot(bounds, [height] * 2, color=colour, linewidth=width, solid_capstyle="butt")
                axes.plot(test.mean, height, marker="|", markersize=11, color=_INK, zorder=4)
        axes.scatter(difference, [row - 0.14] * len(difference), s=22, color="white", edgecolor=_INK, zorder=5)
        _annotate(axes, significance.verdict, (1, row), 6, xycoords=("axes fraction", "data"), annotation_clip=False)
    _style(axes, [comparison.label(arm.name) for arm, _, _ in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    label = (
        "mAP in points above the baseline; 95 % intervals, not corrected: upper over seeds (dots), lower over people"
    )
    axes.set_xlabel(label, color=_MUTED, fontsize=9)
    axes.set_title(f"Difference to {comparison.baseline}: {comparison.dataset}", loc="left", color=_INK, fontsize=11)
    save_figure(figure, path)


def plot_lengths(maps: Mapping[int, float], arm: str, chosen: int | None, path: Path | str) -> None:
    """Writes a PNG: an arm's mAP by the steps of its training; a dashed line at the `chosen` number of steps."""
    figure, axes = new_figure(6.2, 3.2, 160)
    lengths = sorted(maps)
    axes.plot(lengths, [maps[steps] for steps in lengths], color=_ARM, marker="o", zorder=3)
    if chosen is not None:
        axes.axvline(chosen, color=_MUTED, linewidth=1.6, linestyle=(0, (4, 3)), zorder=2)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{steps:,}" for steps in lengths])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, max(1.0, 1.15 * max(maps.values())))
    axes.grid(color=_GRID, linewidth=0.8, zorder=0)
    axes.set_xlabel("steps of training, each with its own schedule; dashed: the comparison's", color=_MUTED, fontsize=9)
    axes.set_ylabel("mAP in %", color=_MUTED, fontsize=9)
    axes.set_title(f"Is {arm} trained long enough?", loc="left", color=_INK, fontsize=11)
    save_figure(figure, path)


def _annotate(axes: Axes, text: str, at: tuple[float, float], shift: int, **options: Any) -> None:
    style: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": _INK}
    axes.annotate(text, at, xytext=(shift, 0), **style, **options)


def _style(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, color=_INK, fontsize=10)
    axes.invert_yaxis()
    axes.grid(axis="x", color=_GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelcolor=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
