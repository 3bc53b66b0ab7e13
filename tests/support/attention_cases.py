"""Inputs of `cross_attention` and `attention` that their tests share, and the float64 oracle."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Bank(NamedTuple):
    """Arguments of `cross_attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    prompt_index: Tensor
    heads: int


class Slices(NamedTuple):
    """Arguments of `attention`."""

    query: Tensor
    key: Tensor
    value: Tensor
    heads: int


def bank(
    rows: int, tokens: int, keys: int, heads: int, head_dim: int, dtype: torch.dtype, device: str, scale: float = 1.0
) -> Bank:
    """Three prompts in a bank of three layers, of which the middle one is asked for; index repeated, not in order.

    All around what is asked for is NaN: other layers, other tokens.
    """
    generator = torch.Generator().manual_seed(rows + tokens + keys + head_dim)
    channels = heads * head_dim
    query = torch.full((rows, tokens + 2, channels + 32), math.nan)
    query[:, 1:-1, 16:-16] = scale * torch.randn(rows, tokens, channels, generator=generator)
    whole = torch.full((3, 2, keys + 2, 3 * channels), math.nan)
    whole[:, :, 1:-1, channels : 2 * channels] = scale * torch.randn(3, 2, keys, channels, generator=generator)
    index = torch.tensor([2, 0, 2])[torch.arange(rows) % 3]
    asked = whole.to(device, dtype)[:, :, 1:-1, channels : 2 * channels]
    return Bank(query.to(device, dtype)[:, 1:-1, 16:-16], asked[:, 0], asked[:, 1], index.to(device), heads)


def slices(
    rows: int, tokens: int, keys: int, heads: int, head_dim: int, dtype: torch.dtype, device: str, scale: float = 1.0
) -> Slices:
    """Of a fused projection where tokens and keys are as many; what lies behind the last of them is NaN."""
    generator = torch.Generator().manual_seed(rows + tokens + keys + head_dim)
    longest = max(tokens, keys)
    fused = torch.full((rows, longest + 1, 3 * heads * head_dim), math.nan)
    fused[:, :longest] = scale * torch.randn(rows, longest, 3 * heads * head_dim, generator=generator)
    query, key, value = fused.to(device, dtype).chunk(3, -1)
    return Slices(query[:, :tokens], key[:, :keys], value[:, :keys], heads)


def exact(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of every row and head, in float64."""
    q, k, v = (x.double().unflatten(-1, (heads, -1)) for x in (query, key, value))
    scores = torch.einsum("rthd,rshd->rhts", q, k) / math.sqrt(q.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("rhts,rshd->rthd", weights / weights.sum(-1, keepdim=True), v).flatten(2)


def exact_bank(given: Bank) -> Tensor:
    """The same of each row and its own prompt."""
    each = range(len(given.query))
    prompts = given.prompt_index.tolist()
    parts = [
        exact(given.query[r : r + 1], given.key[[prompts[r]]], given.value[[prompts[r]]], given.heads) for r in each
    ]
    return torch.cat(parts)
