"""Whether an image is the model's: against exact networks, no further off than diffusers' own pipeline twice over.

The allowance is derived, not picked: rounding in the same precision moves plain diffusers by so much on the very same noise;
another order of the same sums may do so again. Pixels are compared with the exact ones before these are rounded, so
that rounding to 8 bits alone (rms 0.29 of 255) is in every figure, and in the allowance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dive_fast.models.prompts import PromptEncoder
from dive_fast.sampling import Schedule, dpmpp_2m, guided, repeated
from dive_fast.types import DiveError, InputError

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle
    from dive_fast.synth.planfile import SynthesisPlan
    from dive_fast.synth.render import Start

FACTOR = 2.0  # of plain's own error
EXACT = {
    "fp32": torch.float64,
    "fp16": torch.float32,
    "bf16": torch.float32,
    "fp8": torch.float32,
    "int8": torch.float32,
}


@dataclass(frozen=True)
class Allowance:
    """What plain diffusers is off by in the same precision: rms of its worst image, in levels of 255."""

    plain_rms: float

    @property
    def rms(self) -> float:
        return FACTOR * self.plain_rms

    @property
    def psnr(self) -> float:
        """The least PSNR in dB that passes."""
        return psnr(self.rms)


@dataclass(frozen=True)
class Parity:
    """The worst image's rms difference, its PSNR in dB, and the largest difference of all pixels, in levels of 255."""

    rms: float
    psnr: float
    largest: float
    passed: bool


def psnr(rms: float) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images."""
    return math.inf if rms == 0 else 20 * math.log10(255 / rms)


def worst_rms(images: NDArray[Any], exact: NDArray[np.float64]) -> float:
    """Of [B, H, W, 3] in 0..255: the largest root mean square difference of an image."""
    if images.shape != exact.shape:
        raise InputError(f"parity: images are {list(images.shape)}, the exact ones {list(exact.shape)}")
    squares = (images.astype(np.float64) - exact) ** 2
    return float(np.sqrt(squares.reshape(len(squares), -1).mean(1)).max())


def parity(images: NDArray[Any], exact: NDArray[np.float64], allowance: Allowance) -> Parity:
    """What is not finite fails, as what is too far off."""
    rms = worst_rms(images, exact)
    largest = float(np.abs(images.astype(np.float64) - exact).max())
    return Parity(rms, psnr(rms), largest, rms <= allowance.rms)


@torch.inference_mode()
def exact_images(
    bundle: ModelBundle, plan: SynthesisPlan, start: Start, precision: str, device: torch.device
) -> NDArray[np.float64]:
    """[B, H, W, 3] in 0..255, not rounded: the bundle's networks in a wider type than `precision`, image by image.

    float32 for fp16 and bf16 (without TF32), float64 for fp32. The modules are moved in place.
    """
    dtype = EXACT[precision]
    for module in (bundle.text_encoder, bundle.unet, bundle.vae):
        nn.Module.to(module, device, dtype)
    assert bundle.prompts is not None  # `bench_plan` raises without identities
    bank = PromptEncoder(bundle.tokenizer, bundle.prompts)
    schedule = Schedule.from_config(bundle.scheduler_config, plan.sampling.steps)

    def encode(ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = bundle.text_encoder(ids.to(device)).last_hidden_state
        return out

    hidden, index = bank.encode(encode, [None, *(job.key for job in start.jobs)])

    def eps(latents: torch.Tensor, timestep: int, rows: torch.Tensor) -> torch.Tensor:
        step = torch.full((1,), timestep, dtype=torch.int64, device=device)
        sample = repeated(latents, len(rows)).to(dtype)
        out: torch.Tensor = bundle.unet(sample, step, hidden[rows.to(device)], return_dict=False)[0]
        return out.float()

    found = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for number in range(len(start.jobs)):
            noise = start.noise[number : number + 1].to(device)
            own = index[1 + number : 2 + number]
            latents = dpmpp_2m(guided(eps, own, 0, plan.sampling.guidance), noise, schedule)
            image = bundle.vae.decode(latents.to(dtype) / bundle.vae.config.scaling_factor, return_dict=False)[0]
            found.append((image.double() * 0.5 + 0.5).clamp(0, 1).mul(255).permute(0, 2, 3, 1).cpu())
    images: NDArray[np.float64] = torch.cat(found).numpy()
    if not np.isfinite(images).all():
        raise DiveError(f"parity: the exact images are not finite in {dtype}; check the model")
    return images
