"""The comparison as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.io import atomic_path
from dive_fast.reid.table import spread
from dive_fast.types import DiveError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dive_fast.reid.compare import Comparison

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
    _dress(axes, comparison)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def _dress(axes: Axes, comparison: Comparison) -> None:
    names = [
        arm.name if not (role := comparison.role(arm.name)) else f"{arm.name}\n({role})" for arm in comparison.arms
    ]
    axes.set_yticks(range(len(names)), names, color=_INK, fontsize=10)
    axes.invert_yaxis()
    best = max(max(arm.map) for arm in comparison.arms)
    axes.set_xlim(0, max(1.0, best * 1.34))
    axes.set_xlabel("mAP in %, bar: mean, dots: seeds", color=_MUTED, fontsize=9)
    axes.set_title(
        f"Person retrieval by training set: {comparison.dataset}, {comparison.direction}", loc="left", color=_INK,
        fontsize=11,
    )  # fmt: skip
    axes.grid(axis="x", color=_GRID, linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelcolor=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
