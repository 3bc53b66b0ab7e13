"""What `geglu` computes, in readable torch. This file defines correctness, on any device and float type."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def geglu_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GEGLU (Shazeer 2020, "GLU Variants Improve Transformer"): `x` [..., K] -> [..., N], in the type of `x`.

    `weight` [2N, K] and `bias` [2N] give N hidden values, then N gates; GELU is exact, x (1 + erf(x / sqrt 2)) / 2. The
    arithmetic is float32 for half types.
    """
    compute = torch.promote_types(x.dtype, torch.float32)
    projected = x.to(compute) @ weight.to(compute).T
    if bias is not None:
        projected = projected + bias.to(compute)
    hidden, gate = projected.chunk(2, -1)
    return (hidden * gate * (1 + torch.erf(gate / math.sqrt(2))) / 2).to(x.dtype)
