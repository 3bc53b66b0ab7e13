"""Chooses an implementation of `cross_attention` and wraps it as a torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.cross_attention.plan import LARGEST_KEYS, plan, why_not_in_shared_memory
from dive_kernels.cross_attention.reference import cross_attention_reference
from dive_kernels.launch import Launch
from dive_kernels.reasons import choose, refuse, why_not_here
from dive_kernels.replay import launched
from dive_kernels.run import capability
from dive_kernels.sdpa import IMPLS, choice, library, misfits, why_not_tiled


def cross_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt_index: Tensor,
    heads: int,
    *,
    impl: str = "auto",
    validate: bool = True,
) -> Tensor:
    """Returns attention of row r of query [R, T, C] to key and value [P, L, C] of prompt `prompt_index[r]`: [R, T, C].

    Scores are scaled by 1 / sqrt(C / heads). `key` and `value` may be views into a bank, as `kv_bank[:, 0, :, a:b]`;
    `prompt_index` is int64; the result is contiguous. `auto` takes what `chosen` names. `fused` is our kernel, which reads
    the bank in place; `sdpa` is torch's attention to a gathered copy; `cudnn`, `flash` and `efficient` fix its backend.
    Each runs or raises `ValueError` with every reason against it. There are no gradients.

    `validate` raises `ValueError` for an index outside [0, P). On CUDA that waits for the device, so it is skipped while a
    CUDA graph is captured. Without it the kernel and the reference write NaN to such rows and read nothing outside; the
    others raise torch's own error.
    """
    result: Tensor = torch.ops.dive.cross_attention(query, key, value, prompt_index, heads, impl, validate)
    return result


def chosen(query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int) -> tuple[str, str]:
    """Returns the implementation that `auto` takes for these tensors, and why."""
    rows, _, channels = query.shape
    reasons = why_not_fused(query, key, value, prompt_index, heads)
    key, value = (x[:1].expand(rows, -1, -1) for x in (key, value))  # shaped as the gathered ones
    table_key = {"head_dim": channels // heads, "keys": key.shape[1]}
    return choice("cross_attention", query, key, value, heads, table_key, query.numel(), reasons)


def why_not_fused(query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int) -> list[str]:
    """Returns every reason why the kernel cannot take these tensors; empty if it can."""
    tensors = {"query": query, "key": key, "value": value}
    reasons = [
        *_misfits(query, key, value, prompt_index, heads),
        *why_not_here(tensors),
        *why_not_tiled(tensors, heads),
    ]
    if key.ndim == 3 and key.shape[1] > LARGEST_KEYS:
        reasons.append(f"needs at most {LARGEST_KEYS} keys, got {key.shape[1]}")
    if not reasons:
        head_dim = query.shape[-1] // heads
        reasons += why_not_in_shared_memory(head_dim, key.shape[1], query.dtype, capability(query.device))
    if not prompt_index.is_contiguous():
        reasons.append(f"needs a contiguous prompt_index, got strides {tuple(prompt_index.stride())}")
    return reasons


@torch.library.custom_op("dive::cross_attention", mutates_args=())
def _cross_attention(
    query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int, impl: str, validate: bool
) -> Tensor:
    given = (query, key, value, prompt_index, heads)
    if impl == "fused" and not validate:
        return launched(_planned, *given)
    choose("cross_attention", impl, IMPLS)
    if impl == "fused":
        refuse("cross_attention: impl='fused' cannot run", why_not_fused(*given))
    refuse("cross_attention", _misfits(query, key, value, prompt_index, heads))
    if validate and not (prompt_index.is_cuda and torch.cuda.is_current_stream_capturing()):
        refuse("cross_attention", _unknown(prompt_index, len(key)))
    if impl == "auto":
        impl, _ = chosen(*given)
    if impl == "fused":
        return launched(_planned, *given)
    if impl == "reference":
        return cross_attention_reference(query, key, value, prompt_index, heads)
    key, value = (x.index_select(0, prompt_index) for x in (key, value))
    return library("cross_attention", query, key, value, heads, impl)


def _planned(
    query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int
) -> tuple[list[Launch], Tensor]:
    """Returns the kernel's launch and its output; raises `ValueError` with every reason against it."""
    given = (query, key, value, prompt_index, heads)
    refuse("cross_attention: impl='fused' cannot run", why_not_fused(*given))
    launch, out = plan(*given, capability(query.device))
    return [launch], out


@_cross_attention.register_fake
def _fake(
    query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int, impl: str, validate: bool
) -> Tensor:
    return query.new_empty(query.shape)


def _misfits(query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int) -> list[str]:
    """Returns what no implementation can take."""
    reasons = misfits({"query": query, "key": key, "value": value}, heads)
    if key.shape[:2] != value.shape[:2]:
        reasons.append(
            f"needs a value for each key, got key {tuple(key.shape)}, value {tuple(value.shape)} (prompts, keys, channels)"
        )
    if key.ndim == 3 and 0 in key.shape[:2]:
        reasons.append(f"needs a prompt and a key at least, got key {tuple(key.shape)} (prompts, keys, channels)")
    if prompt_index.shape != query.shape[:1]:
        reasons.append(
            f"needs an index for each of the {len(query) if query.ndim else 0} rows of query, "
            f"prompt_index has shape {tuple(prompt_index.shape)}"
        )
    if prompt_index.dtype != torch.int64:
        reasons.append(f"prompt_index must be int64, got {prompt_index.dtype}")
    if prompt_index.device != query.device:
        reasons.append(f"prompt_index is on {prompt_index.device}, query on {query.device}")
    return reasons


def _unknown(prompt_index: Tensor, prompts: int) -> list[str]:
    """Returns one reason if an index names no prompt."""
    unknown = (prompt_index < 0) | (prompt_index >= prompts)
    rows: list[int] = unknown.nonzero().flatten().tolist()
    if not rows:
        return []
    more = f" (and {len(rows) - 1} rows more)" if len(rows) > 1 else ""
    return [f"prompt_index must be from 0 to {prompts - 1}, row {rows[0]} has {int(prompt_index[rows[0]])}{more}"]
