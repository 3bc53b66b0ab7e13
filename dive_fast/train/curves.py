"""Loss curves, drawn from training logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dive_fast.io import atomic_encode
from dive_fast.json_files import read_jsonl
from dive_fast.types import InputError

_SMOOTH = 15  # records of the moving mean


@dataclass(frozen=True)
class Curve:
    """One panel: a value of a `LossLog` over steps."""

    log: Path
    value: str
    title: str


def plot_curves(curves: Sequence[Curve], out: Path) -> None:
    """Draws the curves side by side, raw and as a moving mean, into the PNG file `out`; none raises `InputError`."""
    if not curves:
        raise InputError(f"plot {out}: the training had no step; leave --plot out")
    from matplotlib.figure import Figure  # pyplot would need a window system

    figure = Figure(figsize=(4 * len(curves), 3.2))
    axes = figure.subplots(1, len(curves), squeeze=False)
    for axis, curve in zip(axes[0], curves, strict=True):
        steps, values = _points(curve)
        axis.plot(steps, values, color="0.8", linewidth=0.7)
        width = min(_SMOOTH, len(values))
        axis.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"))
        axis.set_title(curve.title)
        axis.set_xlabel("step")
    figure.tight_layout()
    atomic_encode(out, lambda stream: figure.savefig(stream, format="png", dpi=80))


def _points(curve: Curve) -> NDArray[np.float64]:
    """The steps and the values of a log, float64 [2, N]; another or an empty file raises `InputError`."""
    rows = list(read_jsonl(curve.log, "loss log"))
    if not rows:
        raise InputError(f"loss log: {curve.log} is empty; train first")
    points = [[row.get(key) if isinstance(row, dict) else None for row in rows] for key in ("step", curve.value)]
    if not all(type(value) in (int, float) for line in points for value in line):
        raise InputError(f"loss log: {curve.log} has lines without numbers step and {curve.value}; delete it")
    return np.array(points, np.float64)
