"""t-SNE pictures: the same points by modality and source, and some people among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.comparison.plots import new_figure, save_figure
from dive_fast.reid.pictures.features import GROUPS, group_of
from dive_fast.report import html
from dive_fast.types import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("features-groups.png", "features-people.png")
_INK, _MUTED, _OTHERS = "#22272e", "#6b7280", "#d7dbe0"
# Colour for the modality, form for the source: either one is enough to tell two groups apart.
_STYLES = {
    "real visible": ("#0072b2", "o"),
    "real infrared": ("#d55e00", "o"),
    "synthetic visible": ("#56b4e9", "^"),
    "synthetic infrared": ("#e69f00", "^"),
}
_PEOPLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f3c8d", "#8a6d3b", "#2f4b7c", "#a05195")


def plot_groups(points: NDArray[np.float32], samples: Sequence[Sample], path: Path) -> None:
    """Writes a PNG of `points` [N, 2], coloured by modality and source."""
    groups = np.array([group_of(s) for s in samples])
    figure, axes = _figure("Features by modality and source (t-SNE)")
    for name in (g for g in GROUPS if (groups == g).any()):
        colour, marker = _STYLES[name]
        own = groups == name
        style: dict[str, Any] = {"s": 16 if marker == "o" else 20, "marker": marker, "color": colour, "alpha": 0.7}
        x, y = points[own].T
        axes.scatter(x, y, linewidth=0, label=f"{name} ({own.sum():,})", **style)
    _finish(figure, axes, path)


def plot_people(points: NDArray[np.float32], samples: Sequence[Sample], people: Sequence[str], path: Path) -> None:
    """Writes a PNG of the same points: up to ten `people` in colours, the others in grey.

    An identity's name is at the visible image in the middle of its own; a line leads from there to its other groups.
    """
    pids = np.array([s.pid for s in samples])
    groups = np.array([group_of(s) for s in samples])
    figure, axes = _figure("The same points: some people (t-SNE)")
    others = ~np.isin(pids, list(people))
    x, y = points[others].T
    axes.scatter(x, y, s=8, color=_OTHERS, linewidth=0, label=f"others ({others.sum():,})")

    def dots(where: NDArray[np.bool_], name: str, colour: str, **options: Any) -> None:
        face = colour if name.endswith("visible") else "none"
        x, y = points[where].T
        axes.scatter(x, y, marker=_STYLES[name][1], s=30, facecolor=face, edgecolor=colour, zorder=3, **options)

    for name in (g for g in GROUPS if (groups == g).any()):
        dots(np.zeros(len(points), bool), name, _INK, label=name)
    for pid, colour in zip(people, _PEOPLE, strict=False):
        own = {name: (pids == pid) & (groups == name) for name in GROUPS}
        for name, where in own.items():
            dots(where, name, colour, linewidth=1.1)
        middles = [_middle(points[where]) for where in own.values() if where.any()]
        axes.plot(*np.transpose(middles), color=colour, linewidth=0.8, linestyle=":", zorder=2)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75}
        axes.annotate(pid, tuple(middles[0]), fontsize=9, color=colour, weight="bold", zorder=4, ha="center", bbox=box)
    _finish(figure, axes, path)


def _middle(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The one of `points` [n, 2] that is nearest to their median, which may itself be far from all points."""
    nearest: NDArray[np.float32] = points[np.linalg.norm(points - np.median(points, axis=0), axis=1).argmin()]
    return nearest


def _figure(title: str) -> tuple[Figure, Axes]:
    figure, axes = new_figure(8.2, 6.4, 140)
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    return figure, axes


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    """t-SNE's axes mean nothing, so they get no numbers."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#e5e7eb")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=9, labelcolor=_MUTED)
    save_figure(figure, path)


def feature_section(found: Mapping[str, Any], synthetic_in_training: Any, out: Path) -> str:
    """Returns a part of a page with the numbers, `found` as in show.json, and the pictures in `out`."""
    kinds = ["person, nearest visible", "person, nearest infrared", "modality, nearest of all"]
    rows = [
        [
            group["group"],
            "trained on" if group["trained"] else "others",
            f"{group['images']:,}",
            *(_share(group[kind]) for kind in ("visible", "infrared", "modality")),
        ]
        for group in found["shares"]
    ]
    explanation = (
        f"The share of the {found['neighbours']} nearest real images (fewer where fewer are right) that show the image's "
        "own person, or have its own modality; in brackets the share by chance. Real images of the same person by the same "
        "camera are left out. Compare synthetic images with real ones of the same modality, of people whom the net knows "
        "equally well, and of about the same chance; cameras and people still differ."
    )
    return html.section(
        "Real and synthetic images in feature space",
        html.paragraph(explanation),
        html.paragraph(_training(synthetic_in_training)),
        html.table(["images of", "people", "count", *kinds], rows),
        html.paragraph(
            f"Counted: {found['counted']:,} of {found['images']:,} images. t-SNE shows {found['shown']:,}; it keeps "
            "neighbours, not distances: the sizes of clusters and the gaps between them mean nothing. Read the table first."
        ),
        html.plot(out / PICTURES[0], "t-SNE of features, coloured by modality and source"),
        html.plot(out / PICTURES[1], "t-SNE of features, some people coloured"),
    )


def _share(share: Mapping[str, Any]) -> str:
    if share["share"] is None:
        return "-"
    return f"{100 * share['share']:.0f} % ({100 * share['chance']:.1f} %)"


def _training(synthetic: Any) -> str:
    if synthetic == 0:
        return "The net was trained on real images only."
    if isinstance(synthetic, int):
        return f"The net was trained on {synthetic:,} synthetic images too: it knows what such images look like."
    return "The checkpoint does not say whether the net saw synthetic images."
