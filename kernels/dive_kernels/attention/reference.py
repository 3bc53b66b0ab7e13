"""What `attention` computes, in readable torch. This file defines correctness, on any device and float type."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.sdpa import split_heads


def attention_reference(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """[R, T, C] attends to [R, S, C]: [R, T, C] in the type of `query`; the arithmetic is float32 for half types."""
    compute = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (split_heads(x.to(compute), heads) for x in (query, key, value))  # [R, heads, T or S, d]
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    result = scores.softmax(-1) @ v
    return result.transpose(1, 2).flatten(2).contiguous().to(query.dtype)
