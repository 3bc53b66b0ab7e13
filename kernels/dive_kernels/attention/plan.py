"""How the fused kernel is called: tiles by head dim, type and chip."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.launch import INTERPRETER, Launch
from dive_kernels.sdpa import head_constants, head_tiles, strides


def plan(query: Tensor, key: Tensor, value: Tensor, heads: int, capability: int) -> tuple[Launch, Tensor]:
    """Returns the launch on a chip of that compute capability, and the output [R, T, C] that it writes."""
    rows, tokens, channels = query.shape
    head_dim = channels // heads
    query_block, key_block, warps, stages = shape(head_dim, query.dtype, capability)
    out = query.new_empty(query.shape)
    launch = Launch(
        kernel="dive_kernels.attention.fused:attention_kernel",
        grid=(rows * heads * -(-tokens // query_block),),
        arguments={
            "query_ptr": query,
            "key_ptr": key,
            "value_ptr": value,
            "heads": heads,
            "tokens": tokens,
            "keys": key.shape[1],
            **strides("row", query=query, key=key, value=value),
            "out_ptr": out,
        },
        constants={**head_constants(head_dim), "QUERY_BLOCK": query_block, "KEY_BLOCK": key_block},
        warps=warps,
        stages=stages,
    )
    return launch, out


def shape(head_dim: int, dtype: torch.dtype, capability: int) -> tuple[int, int, int, int]:
    """Returns queries and keys of a tile, warps and pipeline stages.

    Registers a thread of Triton 3.9 at head dims 40, 80, 160, no spills: sm_80 128, 168, 255; sm_86 and sm_89 128, 179,
    255; sm_90 126, 120, 188; sm_100 127, 128, 189; sm_120 128, 212, 254. Chosen by these and by occupancy, not by time.
    """
    width = sum(head_tiles(head_dim))
    if capability == INTERPRETER:
        return 64, 64, 4, 1
    if dtype == torch.float32:
        return 16, 16, 8, 1  # without tensor cores; larger tiles spill, and at head dim 160 this one too
    if capability == 90 and 48 < width <= 96:
        return 128, 32, 8, 3  # with 64 keys Triton 3.6 takes 140 registers: one block a multiprocessor
    if 90 <= capability < 120:
        return (128, 64, 8, 3) if width <= 96 else (64, 32, 4, 3)
    if width <= 48 or width == 128:  # one tile of 128 spills in smaller blocks
        return 128, 32, 8, 3
    return (64, 32, 4, 3) if width <= 96 else (64, 16, 4, 2)
