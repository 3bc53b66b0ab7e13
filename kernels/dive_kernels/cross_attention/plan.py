"""How the fused kernel is called: tiles by head dim, type and chip."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.chips import shared_limit
from dive_kernels.launch import INTERPRETER, Launch
from dive_kernels.sdpa import head_constants, head_tiles, strides, tile

LARGEST_KEYS = 128
PROGRAMS = 4096  # below this many programs, each has one tile of queries: a large GPU runs some 600 at once
LARGEST_STEPS = 8


def plan(
    query: Tensor, key: Tensor, value: Tensor, prompt_index: Tensor, heads: int, capability: int
) -> tuple[Launch, Tensor]:
    """Returns the launch on a chip of that compute capability, and the output [R, T, C] that it writes."""
    rows, tokens, channels = query.shape
    prompts, keys, _ = key.shape
    head_dim = channels // heads
    block, warps, stages = shape(head_dim, query.dtype, capability)
    keys_1, keys_2 = key_tiles(keys)
    tiles = -(-tokens // block)
    steps = max(1, min(LARGEST_STEPS, tiles, rows * heads * tiles // PROGRAMS))
    out = query.new_empty(query.shape)
    launch = Launch(
        kernel="dive_kernels.cross_attention.fused:cross_attention_kernel",
        grid=(rows * heads * -(-tiles // steps),),
        arguments={
            "query_ptr": query,
            "key_ptr": key,
            "value_ptr": value,
            "prompt_index_ptr": prompt_index,
            "heads": heads,
            "tokens": tokens,
            "keys": keys,
            "prompts": prompts,
            "steps": steps,
            **strides("row", query=query),
            **strides("prompt", key=key, value=value),
            "out_ptr": out,
        },
        constants={**head_constants(head_dim), "KEYS_1": keys_1, "KEYS_2": keys_2, "BLOCK": block},
        warps=warps,
        stages=stages,
    )
    return launch, out


def shape(head_dim: int, dtype: torch.dtype, capability: int) -> tuple[int, int, int]:
    """Returns queries of a tile, warps and pipeline stages.

    Registers a thread of Triton 3.9 and 3.6 at head dims 40, 80, 160 with 77 keys, no spills: sm_80 108 to 180, sm_86 and
    sm_89 130 to 185, sm_90 86 to 200, sm_100 95 to 168, sm_120 110 to 188. Chosen by these and shared memory, not by time.
    """
    if dtype == torch.float32 and capability != INTERPRETER:
        return 16, 8, 1  # without tensor cores; larger tiles spill
    width = sum(head_tiles(head_dim))
    if 90 <= capability < 120:
        # Queries of the next tile are fetched ahead where registers allow: at 80 on sm_100 Triton 3.6 spills.
        return 64, 4, 2 if width <= (96 if capability == 90 else 48) else 1
    return 64, 4 if width <= 96 else 8, 1  # keys of wide heads leave room for one block a multiprocessor


def key_tiles(keys: int) -> tuple[int, int]:
    """Returns the rows of the one or two tiles that hold every key; the second is 0 if one does. 77 are 64 + 16."""
    return (tile(keys), 0) if keys <= 64 else (64, tile(keys - 64))


def why_not_in_shared_memory(head_dim: int, keys: int, dtype: torch.dtype, capability: int) -> list[str]:
    """Returns one reason if the keys and values of a head do not fit a chip; in a half type they fit every chip.

    The bytes are an upper bound: keys, values, and what Triton needs to pass queries and probabilities between threads.
    """
    if dtype != torch.float32 or capability == INTERPRETER:
        return []
    block, _, _ = shape(head_dim, dtype, capability)
    first, second = head_tiles(head_dim)
    all_keys = sum(key_tiles(keys))
    needed = 4 * (2 * all_keys * (first + second) + block * (all_keys + first))
    limit = shared_limit(capability)
    return [f"needs {needed} bytes of shared memory a block, sm_{capability} has {limit}"] if needed > limit else []
