"""Pictures beside the pocket base's weights: loss curves and grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dive_fast.io import atomic_path
from dive_fast.train.curves import Curve, plot_curves


def plot_losses(work: Path, out: Path) -> None:
    """Draws one panel per trained phase (decoder, text encoder, UNet) from the logs in `work` into the PNG file `out`."""
    panels = (
        ("decoder", "psnr", "decoder: PSNR, dB"),
        ("text", "recall", "text encoder: recall"),
        ("unet", "loss", "UNet: v MSE"),
    )
    curves = [Curve(work / f"{phase}-loss.jsonl", value, title) for phase, value, title in panels]
    plot_curves([curve for curve in curves if curve.log.exists()], out)


def save_grid(rows: Sequence[np.ndarray], out: Path) -> None:
    """Writes rows of images, each uint8 [N, H, W, 3], as a PNG at twice their size."""
    grid = np.concatenate([np.concatenate(list(images), axis=1) for images in rows])
    with atomic_path(out) as temporary:
        Image.fromarray(grid.repeat(2, axis=0).repeat(2, axis=1)).save(temporary, "PNG")
