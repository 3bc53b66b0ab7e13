"""First stage of the pocket base: its autoencoder, on RGB and on infrared-like grey images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dive_fast.train.loop import (
    LossLog,
    MovingAverage,
    batch_indices,
    check_finite,
    cosine_lr,
    load_state,
    save_state,
    set_lr,
)
from dive_fast.world.base_model import BaseShape, new_vae

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL


@dataclass(frozen=True)
class VaeConfig:
    """Training of the autoencoder; `chroma` weighs colour differences, which a plain loss learns last."""

    steps: int = 2600
    batch: int = 8
    lr: float = 1.5e-3
    warmup: int = 100
    chroma: float = 1.0
    kl: float = 5e-4
    seed: int = 0
    save_every: int = 200


def to_signal(images: np.ndarray) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float32 [B, 3, H, W] in -1..1."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def _loss(vae: AutoencoderKL, x: torch.Tensor, noise: torch.Tensor, config: VaeConfig) -> tuple[torch.Tensor, float]:
    """Reconstruction (absolute + squared, with extra weight on colour) + KL; also the PSNR in dB."""
    import torch

    posterior = vae.encode(x).latent_dist
    out = vae.decode(posterior.mean + posterior.std * noise).sample
    error = out - x
    mse = error.square().mean()
    colour = error - error.mean(dim=1, keepdim=True)
    reconstruction = error.abs().mean() + 4 * mse + config.chroma * (colour.abs().mean() + 4 * colour.square().mean())
    # `posterior.kl()` sums over dimensions; the mean keeps the weight independent of the latent's size.
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return reconstruction + config.kl * kl, float(10 * torch.log10(4 / mse.detach()))


def train_vae(images: np.ndarray, shape: BaseShape, config: VaeConfig, out: Path) -> AutoencoderKL:
    """Trains on `images` uint8 [N, H, W, 3]; resumes from `out/vae.state`, logs to `out/vae-loss.jsonl`.

    Returns the moving average of the weights, which is what is shipped, with `scaling_factor` unset.
    """
    import torch
    from tqdm import tqdm

    torch.manual_seed(config.seed)
    vae = new_vae(shape)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0)
    average = MovingAverage(vae.parameters(), 0.998)
    state_path, first = out / "vae.state", 0
    if state_path.exists():
        state = load_state(state_path)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow, first = state["average"], state["step"]
    log = LossLog(out / "vae-loss.jsonl", first)

    def save(step: int) -> None:
        save_state(
            state_path,
            {"step": step, "vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "average": average.shadow,
             "config": asdict(config)},
        )  # fmt: skip

    latent = (config.batch, shape.latent_channels, images.shape[1] // shape.factor, images.shape[2] // shape.factor)
    for step in tqdm(range(first, config.steps), initial=first, total=config.steps, desc="autoencoder", unit="step"):
        x = to_signal(images[batch_indices(len(images), config.batch, step, config.seed)]).contiguous()
        noise = torch.randn(latent, generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step))
        set_lr(optimizer, cosine_lr(step, config.steps, config.lr, config.warmup))
        loss, psnr = _loss(vae, x, noise, config)
        check_finite(loss.item(), step, "autoencoder")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(step)
        if step % 10 == 0:
            log.add(step, loss=loss.item(), psnr=psnr)
        if (step + 1) % config.save_every == 0:
            save(step + 1)
    if first < config.steps:
        save(config.steps)
    average.copy_to_parameters()
    return vae.eval().requires_grad_(False)


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

    from dive_fast.world.cameras import SYSU_CAMERAS, random_grey_camera, random_rgb_camera
    from dive_fast.world.persons import sample_person, sample_shot
    from dive_fast.world.render import render

    report, rows = {}, []
    for kind in ("rgb", "grey", "ir"):
        rng = np.random.default_rng([0x7E57, len(kind)])
        photos = []
        for i in range(count):
            camera = {
                "rgb": lambda: random_rgb_camera(rng),  # noqa: B023  # called at once
                "grey": lambda: random_grey_camera(rng),  # noqa: B023
                "ir": lambda i=i: SYSU_CAMERAS["cam3" if i % 2 else "cam6"],
            }[kind]()
            photos.append(render(sample_person(rng), camera, sample_shot(rng), noise=False))
        images = np.stack(photos)
        again = reconstruct(vae, images)
        report[f"psnr_{kind}"] = round(psnr(images, again), 2)
        rows += [np.concatenate(images[:12], axis=1), np.concatenate(again[:12], axis=1)]
    picture = Image.fromarray(np.concatenate(rows))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(sheet)
    return report
