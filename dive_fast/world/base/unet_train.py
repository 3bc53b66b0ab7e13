"""Third phase of the pocket base: the UNet, on RGB and monochrome photos and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.train.attention import use_cpu_attention
from dive_fast.train.diffusion import DiffusionLoss, noisy_batch
from dive_fast.train.loop import Loss
from dive_fast.world.base.config import BaseShape, UnetConfig
from dive_fast.world.base.fit import fit
from dive_fast.world.base.model import SCHEDULER_CONFIG, new_unet
from dive_fast.world.base.text_train import token_ids

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


def train_unet(
    latents: torch.Tensor,
    captions: Sequence[str],
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    shape: BaseShape,
    config: UnetConfig,
    work: Path,
    device: str = "cpu",
    start: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:
    """Trains a new UNet, or `start` in place, on scaled latents float32 [N, C, h, w] and their captions.

    `text_encoder` stays frozen. All networks are on the CPU before and after.
    """
    import torch

    torch.manual_seed(config.seed)
    unet = new_unet(shape) if start is None else start
    text_encoder.to(device)
    ids, empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])
    use_cpu_attention(unet, device)
    forward = torch.compile(unet) if config.compile else unet
    diffusion = DiffusionLoss.from_config(SCHEDULER_CONFIG, weight_cap=1.0)

    def loss_on(rows: np.ndarray, mine: slice, generator: torch.Generator) -> Loss:
        clean = latents[torch.from_numpy(rows)]
        noisy, noise, timesteps = noisy_batch(clean, diffusion.alphas, generator)
        dropped = torch.rand(config.batch, 1, generator=generator) < config.empty_captions
        with torch.no_grad():
            text = text_encoder(torch.where(dropped, empty, ids[rows])[mine].to(device)).last_hidden_state
        output = forward(noisy[mine].to(device), timesteps[mine].to(device), text).sample
        target = diffusion.target(clean[mine], noise[mine], timesteps[mine]).to(device)
        return (output - target).square().mean(), {}

    fit("unet", [unet], len(latents), loss_on, config, work, device, weight_decay=0.01)
    text_encoder.cpu()
    return unet
