"""First phase of the pocket base: the decoder, on RGB and monochrome images (see vae_start for the encoder)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dive_fast.io import atomic_encode
from dive_fast.models.files import kept_tensors
from dive_fast.train.config import Precision
from dive_fast.train.loop import Loss
from dive_fast.train.photos import to_pixels, to_signal
from dive_fast.train.precision import autocast
from dive_fast.world.base.config import BaseShape, VaeConfig
from dive_fast.world.base.fit import fit
from dive_fast.world.base.model import new_vae
from dive_fast.world.base.vae_start import start_from_components
from dive_fast.world.cameras import SYSU_CAMERAS, WorldCamera, random_monochrome_camera, random_rgb_camera
from dive_fast.world.pedestrians import sample_pedestrian, sample_shot
from dive_fast.world.render import render

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

_START_IMAGES, _TEST_IMAGES = 1500, 96
_BATCH = 32  # images that are encoded or decoded at once


def start_vae(images: np.ndarray, shape: BaseShape, seed: int, path: Path) -> AutoencoderKL:
    """Returns the autoencoder with its final encoder and an untrained decoder, stored in `path` for later phases."""
    import torch

    torch.manual_seed(seed)
    vae = new_vae(shape)

    def make() -> dict[str, torch.Tensor]:
        start_from_components(vae, images[:_START_IMAGES])
        return {**vae.state_dict(), "scaling_factor": 1 / encode_latents(vae, images[:_START_IMAGES]).std()}

    tensors = kept_tensors(path, make)
    vae.register_to_config(scaling_factor=round(float(tensors.pop("scaling_factor")), 4))
    vae.load_state_dict(tensors)
    return vae


def _signals(images: np.ndarray) -> Iterator[torch.Tensor]:
    """Yields batches of uint8 images as float32 in -1..1."""
    for first in range(0, len(images), _BATCH):
        yield to_signal(images[first : first + _BATCH])


def encode_latents(
    vae: AutoencoderKL, images: np.ndarray, precision: Precision = "no", progress: bool = False
) -> torch.Tensor:
    """Returns unscaled posterior means, float32 [N, C, h, w], of uint8 images; bf16 errs by 0.6 % of their deviation."""
    import torch

    from dive_fast.progress import ProgressBar

    batches = ProgressBar(_signals(images), "encode", -(-len(images) // _BATCH), unit="batch", disable=not progress)
    vae.to(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(precision, vae.device):
        means = [vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean.float() for x in batches]
        return torch.cat(means).contiguous().clone()


def train_decoder(
    vae: AutoencoderKL, images: np.ndarray, shape: BaseShape, config: VaeConfig, work: Path, device: str = "cpu"
) -> None:
    """Trains decoder and post-quantisation of `vae`, on the CPU, in place on images uint8 [N, H, W, 3]."""
    import torch

    vae.requires_grad_(False).to(device)
    latent = (config.batch, shape.latent_channels, images.shape[1] // shape.factor, images.shape[2] // shape.factor)

    def loss_on(rows: np.ndarray, mine: slice, generator: torch.Generator) -> Loss:
        """The absolute and squared error, with extra weight on colour; logs the PSNR in dB."""
        noise = torch.randn(latent, generator=generator)[mine].to(device)
        x = to_signal(images[rows[mine]]).to(device)
        with torch.no_grad():
            posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.mean + posterior.std * noise).sample - x
        mse = error.square().mean()
        colour = error - error.mean(dim=1, keepdim=True)
        loss = error.abs().mean() + 4 * mse + config.chroma * (colour.abs().mean() + 4 * colour.square().mean())
        return loss, {"psnr": 10 * torch.log10(4 / mse.detach())}

    networks = [vae.decoder, vae.post_quant_conv]
    fit("decoder", networks, len(images), loss_on, config, work, device, betas=(0.9, 0.98), average=0.998)
    vae.eval().cpu()


def save_grid(rows: Sequence[np.ndarray], out: Path) -> None:
    """Writes rows of images, each uint8 [N, H, W, 3], as a PNG at twice their size."""
    grid = np.concatenate([np.concatenate(list(images), axis=1) for images in rows])
    picture = Image.fromarray(grid.repeat(2, axis=0).repeat(2, axis=1))
    atomic_encode(out, lambda stream: picture.save(stream, "PNG"))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB of two uint8 arrays of one shape."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255.0**2 / mse))


def evaluate_vae(vae: AutoencoderKL, sheet: Path) -> dict[str, float]:
    """Returns the PSNR in dB on unseen photos without noise: RGB, monochrome and infrared, on which it was never trained.

    Writes a sheet of originals above reconstructions.
    """
    import torch

    cameras: dict[str, Callable[[np.random.Generator, int], WorldCamera]] = {
        "rgb": lambda rng, _: random_rgb_camera(rng),
        "monochrome": lambda rng, _: random_monochrome_camera(rng),
        "ir": lambda _, i: SYSU_CAMERAS["cam3" if i % 2 else "cam6"],
    }
    report, rows = {}, []
    for kind, camera in cameras.items():
        rng = np.random.default_rng([0x7E57, len(kind)])
        photos = [
            render(sample_pedestrian(rng), camera(rng, i), sample_shot(rng), noise=False) for i in range(_TEST_IMAGES)
        ]
        images = np.stack(photos)
        with torch.inference_mode():
            parts = [to_pixels(vae.decode(vae.encode(x).latent_dist.mean).sample) for x in _signals(images)]
        decoded = np.concatenate(parts)
        report[f"psnr_{kind}"] = round(psnr(images, decoded), 2)
        rows += [images[:12], decoded[:12]]
    save_grid(rows, sheet)
    return report
