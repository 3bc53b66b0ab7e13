"""What is kept beside the pocket base's weights for people to look at: loss curves and a sheet of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dive_fast.io import atomic_path, read_jsonl
from dive_fast.types import DiveError


def plot_losses(work: Path, out: Path, smooth: int = 15) -> None:
    """One panel a stage (decoder, text encoder, UNet) from the logs in `work`, to the PNG file `out`."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise DiveError("loss curves need matplotlib; pip install 'dive-fast[report]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("decoder", "psnr", "decoder: PSNR, dB"),
        ("text", "recall", "text encoder: recall"),
        ("unet", "mse", "UNet: epsilon MSE"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for axis, (stage, value, title) in zip(axes, panels, strict=True):
        rows = list(read_jsonl(work / f"{stage}-loss.jsonl", "loss log"))
        steps = np.array([row["step"] for row in rows])
        values = np.array([row[value] for row in rows])
        axis.plot(steps, values, color="0.8", linewidth=0.7)
        width = min(smooth, len(values))
        axis.plot(steps[width - 1 :], np.convolve(values, np.ones(width) / width, "valid"))
        axis.set_title(title)
        axis.set_xlabel("step")
    figure.tight_layout()
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    plt.close(figure)


def sample_sheet(photos: np.ndarray, made: np.ndarray, out: Path) -> None:
    """Photos above what the model made of their captions (both uint8 [N, H, W, 3]): a PNG, twice enlarged."""
    from PIL import Image

    rows = np.concatenate([np.concatenate(list(images), axis=1) for images in (photos, made)])
    picture = Image.fromarray(rows)
    with atomic_path(out) as temporary:
        picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(temporary, "PNG")
