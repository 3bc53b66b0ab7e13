"""Third stage of the pocket base: the UNet, on RGB photos and their attribute captions only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.train.diffusion import alphas_cumprod, noisy_batch, snr_weight
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
from dive_fast.world.base_model import SCHEDULER_CONFIG, BaseShape, new_unet

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel


@dataclass(frozen=True)
class UnetConfig:
    """Training of the UNet: epsilon prediction with debiased weights (arXiv 2310.08442)."""

    steps: int = 16000
    batch: int = 16
    lr: float = 7e-4
    warmup: int = 200
    weight_cap: float = 8.0  # of the loss weight 1 / sqrt(SNR)
    empty_captions: float = 0.1  # for classifier-free guidance (arXiv 2207.12598)
    seed: int = 0
    save_every: int = 200


def train_unet(
    latents: torch.Tensor,
    ids: torch.Tensor,
    empty: torch.Tensor,
    text_encoder: CLIPTextModel,
    shape: BaseShape,
    config: UnetConfig,
    out: Path,
) -> UNet2DConditionModel:
    """Trains on scaled latents float32 [N, C, h, w] and caption ids int64 [N, L]; `empty` [1, L] is the empty caption.

    Starts from `out/unet-start.safetensors` if that is there, resumes from `out/unet.state`, logs to
    `out/unet-loss.jsonl`, and returns the moving average of the weights.
    """
    import torch
    from safetensors.torch import load_file
    from tqdm import tqdm

    torch.manual_seed(config.seed)
    unet = new_unet(shape).train()
    start_path, state_path, first = out / "unet-start.safetensors", out / "unet.state", 0
    if start_path.exists():
        unet.load_state_dict(load_file(start_path))
    parameters = list(unet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = MovingAverage(parameters, 0.999)
    if state_path.exists():
        state = load_state(state_path)
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow, first = state["average"], state["step"]
    log = LossLog(out / "unet-loss.jsonl", first)
    alphas = alphas_cumprod(SCHEDULER_CONFIG)

    def save(step: int) -> None:
        save_state(
            state_path,
            {"step": step, "unet": unet.state_dict(), "optimizer": optimizer.state_dict(), "average": average.shadow},
        )

    for step in tqdm(range(first, config.steps), initial=first, total=config.steps, desc="base UNet", unit="step"):
        rows = torch.from_numpy(batch_indices(len(latents), config.batch, step, config.seed))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        noisy, noise, timesteps = noisy_batch(latents[rows], alphas, generator)
        dropped = torch.rand(config.batch, 1, generator=generator) < config.empty_captions
        with torch.no_grad():
            text = text_encoder(torch.where(dropped, empty, ids[rows])).last_hidden_state
        set_lr(optimizer, cosine_lr(step, config.steps, config.lr, config.warmup))
        error = (unet(noisy, timesteps, text).sample - noise).square().mean(dim=(1, 2, 3))
        loss = (error * snr_weight(alphas, timesteps, config.weight_cap)).mean()
        check_finite(loss.item(), step, "base UNet")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(step)
        if step % 10 == 0:
            log.add(step, loss=loss.item(), mse=error.mean().item())
        if (step + 1) % config.save_every == 0:
            save(step + 1)
    if first < config.steps:
        save(config.steps)
    average.copy_to_parameters()
    return unet.eval().requires_grad_(False)
