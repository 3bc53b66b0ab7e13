"""People of a study as one picture: a photo that the model learned from, our infrared, and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dive_fast.data.images import photo_pixels
from dive_fast.reid.comparison.plots import require_matplotlib, save_figure
from dive_fast.types import Sample
from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH

_GAP, _COLUMNS = 4, 3
_TITLE = "photo  |  ours  |  truth"


def plot_people(
    photos: Sequence[Sample], ours: Sequence[Sample], truth: Sequence[Sample], path: Path, count: int = 6
) -> None:
    """Writes a PNG of `count` identities, evenly spread: the first of `photos`, of `ours` and of `truth`.

    Infrared is by the camera that is first by name. All are samples of one world; each identity of `photos` is in the
    others too.
    """
    pids = sorted({sample.pid for sample in photos})
    count = min(count, len(pids))
    camera = min(sample.camera for sample in ours)
    rows = -(-count // _COLUMNS)
    figure = require_matplotlib().Figure(figsize=(9.0, 0.4 + 2.05 * rows), dpi=160, layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for k, axes in zip(range(count), grid, strict=False):
        pid = pids[k * len(pids) // count]
        shown = [_first(photos, pid), _first(ours, pid, camera), _first(truth, pid, camera)]
        axes.imshow(_side_by_side(shown), interpolation="nearest")
        axes.set_title(_TITLE, fontsize=9)
    save_figure(figure, path)


def _first(samples: Sequence[Sample], pid: str, camera: str | None = None) -> Path:
    found = (s.path for s in samples if s.pid == pid and camera in (None, s.camera))
    return min(found, key=lambda path: path.name)


def _side_by_side(paths: Sequence[Path]) -> np.ndarray:
    """The images on white, uint8 [H, W, 3]."""
    gap = np.full((IMAGE_HEIGHT, _GAP, 3), 255, np.uint8)
    parts = [part for path in paths for part in (gap, photo_pixels(path, IMAGE_HEIGHT, IMAGE_WIDTH))]
    return np.concatenate(parts[1:], axis=1)
