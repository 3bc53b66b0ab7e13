"""Third stage of the pocket base: the UNet, on RGB and grey photos and their attribute captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.train.diffusion import Objective, noisy_batch
from dive_fast.train.loop import Stage, batch_indices, run_stage
from dive_fast.train.parallel import my_rows
from dive_fast.world.base.model import SCHEDULER_CONFIG, BaseShape, new_unet

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel


@dataclass(frozen=True)
class UnetConfig:
    """Training of the UNet (v-prediction, see `SCHEDULER_CONFIG`)."""

    steps: int = 12000
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 500
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
    work: Path,
    device: str = "cpu",
    start: UNet2DConditionModel | None = None,
) -> UNet2DConditionModel:
    """Trains on scaled latents float32 [N, C, h, w] and caption ids int64 [N, L]; resumes from `work`.

    `empty` [1, L] is the empty caption. `text_encoder` is frozen. `start` goes on learning, in place, instead of a new
    UNet. Everything comes and goes on the CPU.
    """
    import torch

    torch.manual_seed(config.seed)
    unet = (start.requires_grad_(True) if start is not None else new_unet(shape)).train().to(device)
    text_encoder.to(device)
    objective = Objective.from_config(SCHEDULER_CONFIG, weight_cap=1.0)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rows = torch.from_numpy(batch_indices(len(latents), config.batch, step, config.seed))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        clean = latents[rows]
        noisy, noise, timesteps = noisy_batch(clean, objective.alphas, generator)
        dropped = torch.rand(config.batch, 1, generator=generator) < config.empty_captions
        mine = my_rows(config.batch)
        with torch.no_grad():
            text = text_encoder(torch.where(dropped, empty, ids[rows])[mine].to(device)).last_hidden_state
        output = unet(noisy[mine].to(device), timesteps[mine].to(device), text).sample
        target = objective.target(clean[mine], noise[mine], timesteps[mine]).to(device)
        return (output - target).square().mean(), {}

    stage = Stage("unet", work, config.steps, config.lr, config.warmup, config.save_every)
    run_stage(stage, [{"params": list(unet.parameters()), "weight_decay": 0.01}], loss_at)
    text_encoder.cpu()
    return unet.cpu().eval().requires_grad_(False)
