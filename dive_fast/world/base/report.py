"""What is kept beside the pocket base's weights for people to look at: loss curves and a sheet of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dive_fast.io import atomic_path
from dive_fast.train.curves import Curve, plot_curves


def plot_losses(work: Path, out: Path) -> None:
    """One panel for each stage that ran (decoder, text encoder, UNet), from the logs in `work`, to the PNG file `out`."""
    panels = (
        ("decoder", "psnr", "decoder: PSNR, dB"),
        ("text", "recall", "text encoder: recall"),
        ("unet", "loss", "UNet: v MSE"),
    )
    curves = [Curve(work / f"{stage}-loss.jsonl", value, title) for stage, value, title in panels]
    plot_curves([curve for curve in curves if curve.log.exists()], out)


def sample_sheet(photos: np.ndarray, made: np.ndarray, out: Path) -> None:
    """Photos above what the model made of their captions (both uint8 [N, H, W, 3]): a PNG, twice enlarged."""
    from PIL import Image

    rows = np.concatenate([np.concatenate(list(images), axis=1) for images in (photos, made)])
    picture = Image.fromarray(rows)
    with atomic_path(out) as temporary:
        picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(temporary, "PNG")
