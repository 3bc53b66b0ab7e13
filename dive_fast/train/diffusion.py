"""The training objective of denoising diffusion (arXiv 2006.11239)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dive_fast.train.config import Weighting
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch


PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class DiffusionLoss:
    """Targets and loss weights of a UNet that predicts epsilon or v.

    `alphas` float32 [T] is the cumulative product of 1 - beta. Weighting "debiased" (arXiv 2310.08442) multiplies epsilon's
    error by 1 / sqrt(SNR), at most `weight_cap`: in the plain loss, the noisy timesteps that decide layout and colours have
    a hundredth of the error of the clean ones (docs/log.md). v (arXiv 2202.00512) has unit size at every timestep and gets
    no weights; with `of_epsilon`, its error gets the weight of the epsilon error that it causes. "min-snr" (arXiv
    2303.09556) is min(SNR, snr_gamma) / SNR for epsilon, min(SNR, snr_gamma) / (SNR + 1) for v. "plain" weights all
    timesteps equally, as DiVE. `noisy_fraction` as in `noisy_batch`.
    """

    alphas: torch.Tensor
    prediction: str
    weight_cap: float
    noisy_fraction: float = 0.5
    of_epsilon: bool = False
    weighting: Weighting = "debiased"
    snr_gamma: float = 5.0

    @classmethod
    def from_config(
        cls, scheduler_config: dict[str, object], weight_cap: float, noisy_fraction: float = 0.5, **settings: Any
    ) -> DiffusionLoss:
        """Reads schedule and prediction of a diffusers scheduler config; an unknown prediction raises `InputError`."""
        from diffusers import DDPMScheduler

        prediction = str(scheduler_config.get("prediction_type", "epsilon"))
        if prediction not in PREDICTIONS:
            raise InputError(
                f"base model: its scheduler has prediction {prediction!r}; training supports {PREDICTIONS}"
            )
        alphas = DDPMScheduler.from_config(scheduler_config).alphas_cumprod
        return cls(alphas, prediction, weight_cap, noisy_fraction, **settings)

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Loss weights [B] of int64 timesteps [B]."""
        alpha, epsilon = self.alphas[timesteps], self.prediction == "epsilon"
        if self.weighting == "min-snr":
            weights = (self.snr_gamma * (1 - alpha) / alpha).clamp(max=1.0)
        elif self.weighting == "debiased" and (epsilon or self.of_epsilon):
            weights = ((1 - alpha) / alpha).sqrt().clamp(max=self.weight_cap)
        else:
            return alpha.new_ones(len(timesteps))
        return weights if epsilon else alpha * weights  # epsilon's error is sqrt(alpha) times that of v

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns the UNet's target, float32 [B, C, h, w] like latents and noise; all on the device of `alphas`."""
        if self.prediction == "epsilon":
            return noise
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def noisy_batch(
    latents: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator, noisy_fraction: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns noised latents, their noise (both [B, C, h, w]) and timesteps int64 [B].

    Timesteps are stratified: one in each B-th of the schedule, which lowers the variance of independent draws. A fraction
    `noisy_fraction` (between 0 and 1, exclusive) comes from the noisier half of the schedule.
    """
    import torch

    count = len(latents)
    strata = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    clean_fraction = 1 - noisy_fraction
    noisier = 0.5 + 0.5 * (strata - clean_fraction) / noisy_fraction
    where = torch.where(strata < clean_fraction, 0.5 * strata / clean_fraction, noisier)
    timesteps = (where * len(alphas)).long().clamp_(max=len(alphas) - 1)
    noise = torch.randn(latents.shape, generator=generator)
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, noise, timesteps
