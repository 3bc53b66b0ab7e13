"""Second stage of the pocket base: text encoder and UNet together, on RGB photos and attribute captions only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
from dive_fast.world.base_model import SCHEDULER_CONFIG, BaseShape, new_text_encoder, new_unet

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class UnetConfig:
    """Training of text encoder and UNet: epsilon prediction with min-SNR weights (arXiv 2303.09556)."""

    steps: int = 6000
    batch: int = 16
    lr: float = 7e-4
    warmup: int = 200
    snr_gamma: float = 5.0
    empty_captions: float = 0.1  # for classifier-free guidance (arXiv 2207.12598)
    seed: int = 0
    save_every: int = 200


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """int64 [N, tokens], padded as Stable Diffusion pads."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_unet(
    latents: torch.Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    shape: BaseShape,
    config: UnetConfig,
    out: Path,
) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Trains on scaled latents float32 [N, C, h, w] and their captions.

    Resumes from `out/unet.state`, logs to `out/unet-loss.jsonl`, and returns the moving average of the weights.
    """
    import torch
    from tqdm import tqdm

    torch.manual_seed(config.seed)
    text_encoder, unet = new_text_encoder(shape, tokenizer).train(), new_unet(shape).train()
    parameters = [*text_encoder.parameters(), *unet.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, betas=(0.9, 0.99), weight_decay=0.01)
    average = MovingAverage(parameters, 0.999)
    state_path, first = out / "unet.state", 0
    if state_path.exists():
        state = load_state(state_path)
        text_encoder.load_state_dict(state["text_encoder"])
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        average.shadow, first = state["average"], state["step"]
    log = LossLog(out / "unet-loss.jsonl", first)
    ids, empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])
    alphas = alphas_cumprod(SCHEDULER_CONFIG)

    def save(step: int) -> None:
        save_state(
            state_path,
            {"step": step, "text_encoder": text_encoder.state_dict(), "unet": unet.state_dict(),
             "optimizer": optimizer.state_dict(), "average": average.shadow, "config": asdict(config)},
        )  # fmt: skip

    for step in tqdm(range(first, config.steps), initial=first, total=config.steps, desc="base UNet", unit="step"):
        rows = torch.from_numpy(batch_indices(len(latents), config.batch, step, config.seed))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        noisy, noise, timesteps = noisy_batch(latents[rows], alphas, generator)
        dropped = torch.rand(config.batch, 1, generator=generator) < config.empty_captions
        text = text_encoder(torch.where(dropped, empty, ids[rows])).last_hidden_state
        set_lr(optimizer, cosine_lr(step, config.steps, config.lr, config.warmup))
        error = (unet(noisy, timesteps, text).sample - noise).square().mean(dim=(1, 2, 3))
        loss = (error * snr_weight(alphas, timesteps, config.snr_gamma)).mean()
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
    return text_encoder.eval().requires_grad_(False), unet.eval().requires_grad_(False)
