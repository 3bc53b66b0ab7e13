"""The comparison as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.io import atomic_path
from dive_fast.reid.comparison.table import spread
from dive_fast.types import DiveError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dive_fast.reid.comparison.compare import Arm, Comparison

_INK, _MUTED, _GRID = "#22272e", "#6b7280", "#e5e7eb"
_BASELINE, _ORACLE, _ARM = "#9ca3af", "#2a9d8f", "#3b6fb6"


def require_matplotlib() -> None:
    """Raises `DiveError` when the plot could not be drawn, so that it is known before the training and not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DiveError("the comparison's plot needs matplotlib; pip install 'dive-fast[report]'") from error


def plot_comparison(comparison: Comparison, path: Path | str) -> None:
    """Writes a PNG: a bar per arm (mean mAP), a dot per seed, and how much of the gap to the oracle each arm closes."""
    require_matplotlib()
    from matplotlib.figure import Figure

    arms = comparison.arms
    figure = Figure(figsize=(8.2, 1.7 + 0.62 * len(arms)), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    colours = {comparison.baseline: _BASELINE, comparison.oracle: _ORACLE}
    for row, arm in enumerate(arms):
        colour = colours.get(arm.name, _ARM)
        axes.barh(row, arm.map_mean, height=0.56, color=colour, alpha=0.85, zorder=2)
        nudges = [0.16 * (i - (len(arm.map) - 1) / 2) / max(1, len(arm.map) - 1) * 2 for i in range(len(arm.map))]
        axes.scatter(arm.map, [row + n for n in nudges], s=26, color="white", edgecolor=_INK, linewidth=1.0, zorder=4)
        label = spread(arm.map_mean, arm.map_deviation)
        if arm.gap_closed_mean is not None:
            label += f"   ({100 * arm.gap_closed_mean:.0f} % of the gap)"
        axes.annotate(
            label, (max([arm.map_mean, *arm.map]), row), xytext=(9, 0), textcoords="offset points",
            va="center", fontsize=9, color=_INK,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    for name, colour in colours.items():
        if name is not None:
            axes.axvline(comparison.arm(name).map_mean, color=colour, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    _dress(axes, [_label(arm, comparison) for arm in arms])
    axes.set_xlim(0, max(1.0, max(max(arm.map) for arm in arms) * 1.34))
    axes.set_xlabel("mAP in %, bar: mean, dots: seeds", color=_MUTED, fontsize=9)
    axes.set_title(
        f"Person retrieval by training set: {comparison.dataset}, {comparison.direction}", loc="left", color=_INK,
        fontsize=11,
    )  # fmt: skip
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _label(arm: Arm, comparison: Comparison) -> str:
    role = comparison.role(arm.name)
    return f"{arm.name}\n({role})" if role else arm.name


def _dress(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels, color=_INK, fontsize=10)
    axes.invert_yaxis()
    axes.grid(axis="x", color=_GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelcolor=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def plot_differences(comparison: Comparison, path: Path | str) -> None:
    """Writes a PNG: each arm's mAP difference to the baseline, a dot per seed, with both 95 % intervals of the mean."""
    require_matplotlib()
    from matplotlib.figure import Figure

    arms = [arm for arm in comparison.arms if arm.significance is not None and arm.difference is not None]
    figure = Figure(figsize=(8.2, 1.9 + 0.62 * len(arms)), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=_BASELINE, linewidth=1.2, zorder=1)
    for row, arm in enumerate(arms):
        assert arm.significance is not None and arm.difference is not None
        colour = _ORACLE if arm.name == comparison.oracle else _ARM
        for test, shift, width in ((arm.significance.seeds, -0.14, 1.6), (arm.significance.people, 0.14, 4.5)):
            if test is not None:
                axes.plot(
                    [test.low, test.high], [row + shift] * 2, color=colour, linewidth=width, solid_capstyle="butt"
                )
                axes.plot(test.mean, row + shift, marker="|", markersize=11, color=_INK, zorder=4)
        axes.scatter(arm.difference, [row - 0.14] * len(arm.difference), s=22, color="white", edgecolor=_INK, zorder=5)
        axes.annotate(
            arm.significance.verdict, (1, row), xycoords=("axes fraction", "data"), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=9, color=_INK, annotation_clip=False,
        )  # fmt: skip
    _dress(axes, [_label(arm, comparison) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(
        "mAP in points above the baseline; 95 % intervals, not corrected: upper over seeds (dots), lower over people",
        color=_MUTED, fontsize=9,
    )  # fmt: skip
    axes.set_title(f"Difference to {comparison.baseline}: {comparison.dataset}", loc="left", color=_INK, fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
