"""Chooses an implementation of `attention` and wraps it as a torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.attention.plan import plan
from dive_kernels.attention.reference import attention_reference
from dive_kernels.launch import Launch
from dive_kernels.reasons import choose, refuse, why_not_here
from dive_kernels.replay import launched
from dive_kernels.run import capability
from dive_kernels.sdpa import IMPLS, choice, library, misfits, why_not_tiled


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, *, impl: str = "auto") -> Tensor:
    """Returns attention of query [R, T, C] to key and value [R, S, C], scaled by 1 / sqrt(C / heads): [R, T, C], contiguous.

    All three may be slices of a fused projection [R, T, 3C]; none is copied. `auto` takes what `chosen` names. `fused`
    is our kernel, `sdpa` torch's attention; `cudnn`, `flash` and `efficient` fix its backend. Each runs or raises
    `ValueError` with every reason against it. There are no gradients.
    """
    result: Tensor = torch.ops.dive.attention(query, key, value, heads, impl)
    return result


def chosen(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[str, str]:
    """Returns the implementation that `auto` takes for these tensors, and why."""
    rows, tokens, channels = query.shape
    reasons = why_not_fused(query, key, value, heads)
    scores = rows * heads * tokens * key.shape[1]
    return choice("attention", query, key, value, heads, {"head_dim": channels // heads}, scores, reasons)


def why_not_fused(query: Tensor, key: Tensor, value: Tensor, heads: int) -> list[str]:
    """Returns every reason why the kernel cannot take these tensors; empty if it can."""
    tensors = {"query": query, "key": key, "value": value}
    return [*_misfits(query, key, value, heads), *why_not_here(tensors), *why_not_tiled(tensors, heads)]


@torch.library.custom_op("dive::attention", mutates_args=())
def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, impl: str) -> Tensor:
    if impl == "fused":
        return launched(_planned, query, key, value, heads)
    choose("attention", impl, IMPLS)
    refuse("attention", _misfits(query, key, value, heads))
    if impl == "auto":
        impl, _ = chosen(query, key, value, heads)
    if impl == "reference":
        return attention_reference(query, key, value, heads)
    if impl != "fused":
        return library("attention", query, key, value, heads, impl)
    return launched(_planned, query, key, value, heads)


def _planned(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[list[Launch], Tensor]:
    """Returns the kernel's launch and its output; raises `ValueError` with every reason against it."""
    refuse("attention: impl='fused' cannot run", why_not_fused(query, key, value, heads))
    launch, out = plan(query, key, value, heads, capability(query.device))
    return [launch], out


@_attention.register_fake
def _fake(query: Tensor, key: Tensor, value: Tensor, heads: int, impl: str) -> Tensor:
    return query.new_empty(query.shape)


def _misfits(query: Tensor, key: Tensor, value: Tensor, heads: int) -> list[str]:
    """Returns what no implementation can take."""
    reasons = misfits({"query": query, "key": key, "value": value}, heads)
    if key.shape[:2] != value.shape[:2] or key.shape[:1] != query.shape[:1]:
        reasons.append(
            f"needs rows of query and rows and tokens of key and value that agree, got query {tuple(query.shape)}, "
            f"key {tuple(key.shape)}, value {tuple(value.shape)}"
        )
    if key.ndim == 3 and key.shape[1] == 0:
        reasons.append("needs a key at least, got none")
    return reasons
