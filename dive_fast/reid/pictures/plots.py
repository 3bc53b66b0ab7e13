"""t-SNE pictures: the same points by modality and source, and some people among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import atomic_path
from dive_fast.reid.comparison.plots import require_matplotlib
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
MOST_PEOPLE = len(_PEOPLE)


def plot_groups(points: NDArray[np.float32], samples: Sequence[Sample], path: Path) -> None:
    """Writes a PNG of `points` [N, 2], coloured by modality and source."""
    groups = np.array([group_of(s) for s in samples])
    figure, axes = _figure("Features by modality and source (t-SNE)")
    for name in (g for g in GROUPS if (groups == g).any()):
        colour, marker = _STYLES[name]
        own = groups == name
        axes.scatter(
            points[own, 0], points[own, 1], s=16 if marker == "o" else 20, marker=marker, color=colour, alpha=0.7,
            linewidth=0, label=f"{name} ({own.sum():,})",
        )  # fmt: skip
    _finish(figure, axes, path)


def plot_people(points: NDArray[np.float32], samples: Sequence[Sample], people: Sequence[str], path: Path) -> None:
    """Writes a PNG of the same points: up to `MOST_PEOPLE` people in colours, the others in grey.

    A person's name stands at the visible image in the middle of theirs, from where a line leads to those of other groups.
    """
    pids = np.array([s.pid for s in samples])
    groups = np.array([group_of(s) for s in samples])
    figure, axes = _figure("The same points: some people (t-SNE)")
    others = ~np.isin(pids, list(people))
    axes.scatter(
        points[others, 0], points[others, 1], s=8, color=_OTHERS, linewidth=0, label=f"others ({others.sum():,})"
    )
    for name in (g for g in GROUPS if (groups == g).any()):
        filled = name.endswith("visible")
        axes.scatter(
            [], [], marker=_STYLES[name][1], s=30, facecolor=_INK if filled else "none", edgecolor=_INK, label=name
        )
    for pid, colour in zip(people, _PEOPLE, strict=False):
        for name in GROUPS:
            own = (pids == pid) & (groups == name)
            fill = colour if name.endswith("visible") else "none"
            axes.scatter(
                points[own, 0],
                points[own, 1],
                s=30,
                marker=_STYLES[name][1],
                facecolor=fill,
                edgecolor=colour,
                linewidth=1.1,
                zorder=3,
            )
        own_groups = [(pids == pid) & (groups == name) for name in GROUPS]
        middles = [_middle(points[own]) for own in own_groups if own.any()]
        axes.plot(*np.transpose(middles), color=colour, linewidth=0.8, linestyle=":", zorder=2)
        axes.annotate(
            pid, (middles[0][0], middles[0][1]), fontsize=9, color=colour, weight="bold", zorder=4, ha="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75},
        )  # fmt: skip
    _finish(figure, axes, path)


def _middle(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The one of `points` [n, 2] that is nearest to their median: where they are scattered, nothing lies at that itself."""
    nearest: NDArray[np.float32] = points[np.linalg.norm(points - np.median(points, axis=0), axis=1).argmin()]
    return nearest


def _figure(title: str) -> tuple[Figure, Axes]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 6.4), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    return figure, axes


def _finish(figure: Figure, axes: Axes, path: Path) -> None:
    """t-SNE's axes mean nothing, so they get no numbers."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#e5e7eb")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, frameon=False, fontsize=9, labelcolor=_MUTED)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def draw_features(points: NDArray[np.float32], samples: Sequence[Sample], people: Sequence[str], out: Path) -> None:
    """`features-groups.png` and `features-people.png` in `out`."""
    plot_groups(points, samples, out / PICTURES[0])
    plot_people(points, samples, people, out / PICTURES[1])


def feature_section(found: Mapping[str, Any], synthetic_in_training: Any, out: Path) -> str:
    """The numbers, and the pictures that lie in `out`, as a part of a page; `found` is what show.json holds of them."""
    header = [
        "images of",
        "people",
        "count",
        "person, nearest visible",
        "person, nearest infrared",
        "modality, nearest of all",
    ]
    rows = [
        [
            group["group"],
            "trained on" if group["trained"] else "others",
            f"{group['images']:,}",
            *(_share(group[kind]) for kind in ("visible", "infrared", "modality")),
        ]
        for group in found["shares"]
    ]
    told = (
        f"Among the {found['neighbours']} nearest real images (fewer where there are fewer right ones): the share that "
        "shows the image's own person, or has its own modality; in brackets what chance would give. Real images of the "
        "same person by the same camera are left out. Compare synthetic images with real ones of the same modality, of "
        "people whom the net knows as well, or as little, and of about the same chance; cameras and people still differ."
    )
    return html.section(
        "Real and synthetic images in feature space",
        html.paragraph(told),
        html.paragraph(_training(synthetic_in_training)),
        html.table(header, rows),
        html.paragraph(
            f"Counted: {found['counted']:,} of {found['images']:,} images. t-SNE shows {found['shown']:,}; it keeps "
            "neighbours, not distances: sizes of clusters and gaps between them mean nothing, so read the table first."
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
