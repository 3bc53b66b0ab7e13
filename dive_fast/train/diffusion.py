"""Denoising-diffusion training arithmetic (arXiv 2006.11239), shared by the base's training and personalising."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dive_fast.train.config import Weighting
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch


PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Objective:
    """What a UNet of a scheduler config learns to predict, from which timesteps, and how much each counts.

    `alphas` float32 [T] is the cumulative product of 1 - beta. Weighting "debiased" weighs epsilon prediction by
    `snr_weight` up to `weight_cap`; v-prediction (arXiv 2202.00512) needs no weights: v is of unit size at every timestep.
    With `of_epsilon` the error of v counts as the error of epsilon that it makes, so that both kinds weigh timesteps alike.
    "min-snr" counts every error as that of the clean latents, weighed by SNR up to `snr_gamma` (`min_snr_weight`); "plain"
    is the mean squared error of what the model predicts, as DiVE. `noisy_share` as in `noisy_batch`.
    """

    alphas: torch.Tensor
    prediction: str
    weight_cap: float
    noisy_share: float = 0.5
    of_epsilon: bool = False
    weighting: Weighting = "debiased"
    snr_gamma: float = 5.0

    @classmethod
    def from_config(cls, scheduler_config: dict[str, object], weight_cap: float, noisy_share: float = 0.5) -> Objective:
        """The objective of a scheduler config in diffusers' terms; another `prediction_type` raises `InputError`."""
        from diffusers import DDPMScheduler

        prediction = str(scheduler_config.get("prediction_type", "epsilon"))
        if prediction not in PREDICTIONS:
            raise InputError(f"base model: its scheduler says prediction {prediction!r}; training knows {PREDICTIONS}")
        return cls(DDPMScheduler.from_config(scheduler_config).alphas_cumprod, prediction, weight_cap, noisy_share)

    def weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Loss weights [B] of int64 timesteps [B]."""
        import torch

        if self.weighting == "plain":
            return torch.ones(len(timesteps))
        if self.weighting == "min-snr":
            weights = min_snr_weight(self.alphas, timesteps, self.snr_gamma)
            return weights if self.prediction == "epsilon" else self.alphas[timesteps] * weights
        if self.prediction == "epsilon":
            return snr_weight(self.alphas, timesteps, self.weight_cap)
        if self.of_epsilon:  # at a given noisy latent, epsilon's error is sqrt(alpha) times that of v
            return self.alphas[timesteps] * snr_weight(self.alphas, timesteps, self.weight_cap)
        return torch.ones(len(timesteps))

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the UNet should say: float32 [B, C, h, w] like latents and noise; all on the device of `alphas`."""
        if self.prediction == "epsilon":
            return noise
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def noisy_batch(
    latents: torch.Tensor, alphas: torch.Tensor, generator: torch.Generator, noisy_share: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noised latents, their noise (both [B, C, h, w]) and timesteps int64 [B], stratified over the schedule.

    One timestep falls into each B-th of the schedule: the same expectation as independent draws, less variance.
    `noisy_share` (between 0 and 1, exclusive) of them are drawn from the noisier half of the schedule.
    """
    import torch

    count = len(latents)
    strata = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    clean_share = 1 - noisy_share
    noisier = 0.5 + 0.5 * (strata - clean_share) / noisy_share
    where = torch.where(strata < clean_share, 0.5 * strata / clean_share, noisier)
    timesteps = (where * len(alphas)).long().clamp_(max=len(alphas) - 1)
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


def min_snr_weight(alphas: torch.Tensor, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """Min-SNR-gamma weights [B] for epsilon prediction (arXiv 2303.09556): min(SNR, gamma) / SNR.

    The paper's min(SNR, gamma) / (SNR + 1) for v-prediction is this times alpha, as epsilon's error is sqrt(alpha) of v's.
    """
    alpha = alphas[timesteps]
    return (gamma * (1 - alpha) / alpha).clamp(max=1.0)
