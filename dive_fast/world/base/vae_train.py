"""First stage of the pocket base: its decoder, on RGB and on infrared-like grey images (see vae_start for the encoder)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dive_fast.io import atomic_path
from dive_fast.train.loop import Stage, batch_indices, run_stage
from dive_fast.train.parallel import my_rows
from dive_fast.world.base.model import BaseShape, new_vae
from dive_fast.world.base.vae_start import start_from_components

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

_START_IMAGES = 1500


@dataclass(frozen=True)
class VaeConfig:
    """Training of the autoencoder; `chroma` weighs colour differences, which a plain loss learns last."""

    steps: int = 6000
    batch: int = 32
    lr: float = 1.5e-3
    warmup: int = 100
    chroma: float = 1.0
    seed: int = 0
    save_every: int = 200


def to_signal(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to contiguous float32 [B, 3, H, W] in -1..1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def start_vae(images: np.ndarray, shape: BaseShape, seed: int, path: Path) -> AutoencoderKL:
    """The untrained autoencoder whose encoder is final, kept in `path` so that every later stage has the same one."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    vae = new_vae(shape)
    if not path.exists():
        start_from_components(vae, images[:_START_IMAGES])
        scale = 1 / encode_latents(vae, images[:_START_IMAGES]).std()
        with atomic_path(path) as temporary:
            save_file({**vae.state_dict(), "scaling_factor": scale}, temporary)
    tensors = load_file(path)
    vae.register_to_config(scaling_factor=round(float(tensors.pop("scaling_factor")), 4))
    vae.load_state_dict(tensors)
    return vae


def encode_latents(vae: AutoencoderKL, images: np.ndarray, batch: int = 32) -> torch.Tensor:
    """Unscaled posterior means, float32 [N, C, h, w], of uint8 images."""
    import torch

    with torch.inference_mode():
        parts = [vae.encode(to_signal(images[i : i + batch])).latent_dist.mean for i in range(0, len(images), batch)]
    return torch.cat(parts).clone()


def _loss(
    vae: AutoencoderKL, x: torch.Tensor, noise: torch.Tensor, config: VaeConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction loss (absolute + squared, with extra weight on colour) and the PSNR in dB."""
    import torch

    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * noise
    error = vae.decode(z).sample - x
    mse = error.square().mean()
    colour = error - error.mean(dim=1, keepdim=True)
    loss = error.abs().mean() + 4 * mse + config.chroma * (colour.abs().mean() + 4 * colour.square().mean())
    return loss, 10 * torch.log10(4 / mse.detach())


def train_decoder(
    vae: AutoencoderKL, images: np.ndarray, shape: BaseShape, config: VaeConfig, work: Path, device: str = "cpu"
) -> None:
    """Trains decoder and post-quantisation of `vae` in place on `images` uint8 [N, H, W, 3]; resumes from `work`.

    `vae` comes and goes on the CPU.
    """
    import torch

    vae.requires_grad_(False).to(device)
    parameters = [
        *vae.decoder.requires_grad_(True).parameters(),
        *vae.post_quant_conv.requires_grad_(True).parameters(),
    ]
    latent = (config.batch, shape.latent_channels, images.shape[1] // shape.factor, images.shape[2] // shape.factor)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mine = my_rows(config.batch)
        x = to_signal(images[batch_indices(len(images), config.batch, step, config.seed)[mine]])
        noise = torch.randn(latent, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        loss, decibels = _loss(vae, x.to(device), noise[mine].to(device), config)
        return loss, {"psnr": decibels}

    stage = Stage(
        "decoder", work, config.steps, config.lr, config.warmup, config.save_every, betas=(0.9, 0.98), average=0.998
    )
    run_stage(stage, [{"params": parameters, "weight_decay": 0.0}], loss_at)
    vae.eval().requires_grad_(False).cpu()


def reconstruct(vae: AutoencoderKL, images: np.ndarray, batch: int = 16) -> np.ndarray:
    """uint8 images through encoder and decoder and back to uint8, same shape."""
    import torch

    parts = []
    with torch.inference_mode():
        for i in range(0, len(images), batch):
            x = to_signal(images[i : i + batch])
            y = vae.decode(vae.encode(x).latent_dist.mean).sample
            parts.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two uint8 arrays of one shape."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255.0**2 / mse))


def judge(vae: AutoencoderKL, sheet: Path, count: int = 96) -> dict[str, float]:
    """PSNR in dB on unseen photos without sensor noise (RGB, grey and, though never trained on, true infrared).

    Writes a sheet of originals above reconstructions.
    """
    from PIL import Image

    from dive_fast.world.cameras import SYSU_CAMERAS, WorldCamera, random_grey_camera, random_rgb_camera
    from dive_fast.world.persons import sample_person, sample_shot
    from dive_fast.world.render import render

    cameras: dict[str, Callable[[np.random.Generator, int], WorldCamera]] = {
        "rgb": lambda rng, _: random_rgb_camera(rng),
        "grey": lambda rng, _: random_grey_camera(rng),
        "ir": lambda _, i: SYSU_CAMERAS["cam3" if i % 2 else "cam6"],
    }
    report, rows = {}, []
    for kind, camera in cameras.items():
        rng = np.random.default_rng([0x7E57, len(kind)])
        photos = [render(sample_person(rng), camera(rng, i), sample_shot(rng), noise=False) for i in range(count)]
        images = np.stack(photos)
        again = reconstruct(vae, images)
        report[f"psnr_{kind}"] = round(psnr(images, again), 2)
        rows += [np.concatenate(images[:12], axis=1), np.concatenate(again[:12], axis=1)]
    picture = Image.fromarray(np.concatenate(rows))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(sheet)
    return report
