"""How near a student, or a tiny decoder, comes to what it was distilled from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Likeness:
    """Images of the student beside those of its teacher, of equal noise, which no training step saw.

    `psnr` is in dB over all pixels. `error` is the root mean square difference of latents, in units of their standard
    deviation over images; `spread` is that deviation of the student's over the teacher's: below 1, images of different
    noise differ less.
    """

    psnr: float
    error: float
    spread: float

    def describe(self) -> str:
        return f"{self.psnr:.1f} dB to the teacher's images, spread {self.spread:.3f} of theirs"


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """PSNR in dB over all pixels uint8 of equal shape; equal ones have 78."""
    error = (ours.float() - theirs.float()).square().mean().clamp(min=1e-3)
    return float(10 * (255**2 / error).log10())


def likeness(ours: torch.Tensor, theirs: torch.Tensor, psnr: float) -> Likeness:
    """Compares latents [B, C, h, w] of the student with the teacher's, whose images differ by `psnr`."""
    spread, whole = ours.std(dim=0).mean(), theirs.std(dim=0).mean()
    return Likeness(psnr, float((ours - theirs).square().mean().sqrt() / whole), float(spread / whole))
