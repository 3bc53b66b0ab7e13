"""FP8 numbers: e4m3 (Micikevicius et al., arXiv 2209.05433), 3 fraction bits, up to 448. A tensor is its numbers x a scale.

Above the smallest normal number, 2^-6, rounding is off by at most 2^-4 of a value, whatever the scale: 448 and 2^-6 are 14
binades apart. So a scale must only keep the largest value below 448, and need not be tight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
CHIPS = 89  # the first compute capability with e4m3 units
LARGEST = torch.finfo(E4M3).max
LEAST_SCALE = torch.finfo(torch.float32).tiny  # of a tensor of zeros


def quantised(x: Tensor, scale: Tensor | float) -> Tensor:
    """Returns `x` / `scale` in e4m3, rounded to the nearest number and cut off at 448; NaN stays NaN."""
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3)


def largest_scale(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Returns the scale, float32, that makes the largest magnitude along `dims` 448; these dimensions become 1."""
    return (x.abs().amax(dims, keepdim=True).float() / LARGEST).clamp(min=LEAST_SCALE)


def norm_scale(weight: Tensor, bias: Tensor, values: int) -> float:
    """Returns a scale that no output of a group norm over `values` values can exceed, with SiLU or without; a power of two.

    One of n values is at most sqrt(n - 1) standard deviations from their mean (Samuelson 1968, "How Deviant Can You Be?"),
    and |SiLU(x)| <= |x|. It takes neither calibration nor a pass over the output; dividing by it is exact.
    """
    bound = (weight.float().abs() * math.sqrt(values - 1) + bias.float().abs()).detach()
    fraction, exponent = math.frexp(max(float(bound.max()), LEAST_SCALE) / LARGEST)
    return math.ldexp(1.0, exponent - (fraction == 0.5))
