"""What `cross_attention` and `attention` share: heads, tiles, torch's own attention by backend, and what `auto` takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.backends.cuda import (
    SDPAParams,
    can_use_cudnn_attention,
    can_use_efficient_attention,
    can_use_flash_attention,
)
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from dive_kernels.reasons import last_strides, one_place, one_type
from dive_kernels.run import capability
from dive_kernels.table import fastest, measured

IMPLS = ("auto", "reference", "fused", "sdpa", "cudnn", "flash", "efficient")
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CAN_USE = {"cudnn": can_use_cudnn_attention, "flash": can_use_flash_attention, "efficient": can_use_efficient_attention}
LARGEST_HEAD_DIM = 160
NO_BACKEND = ("No viable backend", "No available kernel", "cuDNN Frontend error")  # how torch's refusals begin


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[R, T, C] as [R, heads, T, C / heads], without a copy."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def head_tiles(head_dim: int) -> tuple[int, int]:
    """Returns the columns of the one or two tiles that hold a head's channels; the second is 0 if one wastes no more.

    Tiles are powers of two from 16 on: 40 is 32 + 16 (of which 8 are used), 80 is 64 + 16, 160 is 128 + 32.
    """
    one = tile(head_dim)
    first = 1 << head_dim.bit_length() - 1
    if first < 16 or first == head_dim:
        return one, 0
    second = tile(head_dim - first)
    return (first, second) if first + second < one else (one, 0)


def tile(count: int) -> int:
    """Returns the smallest tile for `count` rows or columns: a power of two, at least 16 for tensor cores."""
    return max(16, 1 << (count - 1).bit_length())


def head_constants(head_dim: int) -> dict[str, int]:
    """Returns the kernels' constants for a head."""
    first, second = head_tiles(head_dim)
    return {"HEAD_DIM": head_dim, "HEAD_1": first, "HEAD_2": second}


def strides(first: str, **tensors: Tensor) -> dict[str, int]:
    """Returns the strides of [R, T, C] as the kernels' arguments; `first` names the first dimension."""
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        found |= {f"{name}_{first}_stride": tensor.stride(0), f"{name}_token_stride": tensor.stride(1)}
    return found


def misfits(tensors: Mapping[str, Tensor], heads: int) -> list[str]:
    """Returns what no implementation can take: devices, types, ranks and heads of query, key and value."""
    query = tensors["query"]
    reasons = one_place(tensors) + one_type(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim != 3:
            reasons.append(f"{name} must have 3 dimensions, got shape {tuple(tensor.shape)}")
        elif query.ndim == 3 and tensor.shape[-1] != query.shape[-1]:
            reasons.append(f"{name} has {tensor.shape[-1]} channels, query {query.shape[-1]}")
    if query.ndim == 3 and _head_dim(query, heads) is None:
        reasons.append(f"heads must divide the {query.shape[-1]} channels of query, got {heads}")
    return reasons


def why_not_tiled(tensors: Mapping[str, Tensor], heads: int) -> list[str]:
    """Returns the head dims and strides that neither kernel takes."""
    reasons = last_strides(tensors)
    head_dim = _head_dim(tensors["query"], heads)
    if head_dim is not None and (head_dim % 8 or head_dim > LARGEST_HEAD_DIM):
        reasons.append(f"needs a head dim that is a multiple of 8 from 8 to {LARGEST_HEAD_DIM}, got {head_dim}")
    return reasons


def _head_dim(query: Tensor, heads: int) -> int | None:
    channels = query.shape[-1] if query.ndim else 0
    return channels // heads if channels and heads > 0 and channels % heads == 0 else None


def library(op: str, query: Tensor, key: Tensor, value: Tensor, heads: int, impl: str) -> Tensor:
    """Returns torch's attention of [R, T, C] to [R, S, C]; `impl` names the backend, "sdpa" leaves it to torch.

    Raises `ValueError` with torch's reasons if that backend cannot run.
    """
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    if impl == "sdpa":
        result = functional.scaled_dot_product_attention(q, k, v)
    else:
        with warnings.catch_warnings(record=True) as caught:  # torch gives its reasons as warnings
            warnings.simplefilter("always")
            try:
                with sdpa_kernel(BACKENDS[impl]):
                    result = functional.scaled_dot_product_attention(q, k, v)
            except RuntimeError as error:
                if not any(text in str(error) for text in NO_BACKEND):
                    raise
                reasons = [str(warning.message).partition(" (Triggered internally")[0] for warning in caught]
                where = f"{query.device}, {query.dtype}, head dim {q.shape[-1]}"
                why = "; ".join(reasons or [str(error).splitlines()[0]])
                raise ValueError(f"{op}: impl={impl!r} cannot run on {where}: {why}") from error
        for warning in caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result.transpose(1, 2).flatten(2).contiguous()


def choice(
    op: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    table_key: Mapping[str, int],
    work: int,
    against_fused: Sequence[str],
) -> tuple[str, str]:
    """Returns what `auto` runs, and why: the fastest in the table that can run here, or torch's choice if unmeasured.

    The tensors are as in `library`, `table_key` and `work` as in `table`; `against_fused` holds reasons against our kernel.
    """
    if query.device.type != "cuda":
        return "sdpa", f"query is on {query.device}, our kernel is for CUDA"
    architecture = capability(query.device)
    times = measured(op, architecture, query.dtype, table_key, work)
    if times is None:
        return "sdpa", f"nobody measured {op} on sm_{architecture} with {query.dtype} and {dict(table_key)}"
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    parameters = SDPAParams(q, k, v, None, 0.0, False, False)
    able = [name for name, can in CAN_USE.items() if can(parameters)]
    name = fastest(times, ("sdpa", *able) if against_fused else ("fused", "sdpa", *able), "sdpa")
    if name not in times:
        return name, f"none of what was measured of {op} on sm_{architecture} can run: {'; '.join(against_fused)}"
    return name, f"{times[name]} ms on sm_{architecture}, the least of what can run here"
