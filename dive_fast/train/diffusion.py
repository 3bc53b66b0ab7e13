"""Denoising-diffusion training arithmetic (arXiv 2006.11239), shared by the base's training and personalising."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch


def alphas_cumprod(scheduler_config: dict[str, object]) -> torch.Tensor:
    """float32 [T] of a scheduler config in diffusers' terms; only epsilon prediction is trained here."""
    from diffusers import DDPMScheduler

    prediction = scheduler_config.get("prediction_type", "epsilon")
    if prediction != "epsilon":
        raise InputError(f"base model: training needs epsilon prediction, its scheduler says {prediction!r}")
    return DDPMScheduler.from_config(scheduler_config).alphas_cumprod


def noisy_batch(
    latents: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noised latents, their noise (both [B, C, h, w]) and timesteps int64 [B], stratified over the schedule.

    One timestep falls into each B-th of the schedule: the same expectation as independent draws, less variance.
    """
    import torch

    count = len(latents)
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    timesteps = (strata * (len(alphas) / count)).long().clamp_(max=len(alphas) - 1)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, noise, timesteps


def snr_weight(alphas: torch.Tensor, timesteps: torch.Tensor, cap: float) -> torch.Tensor:
    """Debiased weights [B] for epsilon prediction (arXiv 2310.08442): 1 / sqrt(SNR), at most `cap`.

    With plain epsilon loss the noisy end of the schedule, where a picture's layout and colours are decided and captions
    matter, has a hundredth of the clean end's error and next to no say (docs/log.md).
    """
    alpha = alphas[timesteps]
    return ((1 - alpha) / alpha).sqrt().clamp(max=cap)
