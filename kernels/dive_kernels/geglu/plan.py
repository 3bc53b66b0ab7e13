"""How the fused kernel is called, and its tile on each chip."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dive_kernels.launch import INTERPRETER, Launch

BAND = 8  # tiles of tokens that share weights


class Tile(NamedTuple):
    """The `tokens` x `columns` that one program computes in steps of `inner`, and its warps and stages."""

    tokens: int
    columns: int
    inner: int
    warps: int
    stages: int


# What shared memory holds: (tokens + 2 columns) x inner elements for each stage, but one where there is no wgmma or
# tcgen05. That is 96 KB on 9.0, which has 227, and 48 on 8.6, 8.9 and 12.0 with their 99, so that two programs share a
# multiprocessor; 192 on 10.0, which has 227, and 96 on 8.0, which has 163. A larger tile spills registers on 8.6 to 12.0.
HALF_TILES = {80: Tile(128, 64, 64, 8, 4), 90: Tile(128, 64, 64, 8, 3), 100: Tile(128, 128, 64, 8, 4)}
SMALL_HALF_TILE = Tile(128, 64, 32, 8, 4)
FLOAT_TILE = Tile(64, 64, 32, 8, 2)  # no tensor cores in exact float32: bound by arithmetic
INTERPRETED_TILE = Tile(32, 64, 64, 1, 1)  # what numpy is quick at


def plan(x: Tensor, weight: Tensor, bias: Tensor | None, capability: int) -> tuple[Launch, Tensor]:
    """Returns the launch on a chip of that compute capability, and the output [..., N] that it writes."""
    inner, columns = weight.shape[1], weight.shape[0] // 2
    out = torch.empty((*x.shape[:-1], columns), dtype=x.dtype, device=x.device)
    tokens, stride = x.view(-1, inner).shape[0], x.view(-1, inner).stride(0)  # api.py: this needs no copy
    tile = tile_for(x.dtype, capability)
    launch = Launch(
        kernel="dive_kernels.geglu.fused:geglu_kernel",
        grid=(-(-tokens // tile.tokens) * -(-columns // tile.columns),),
        arguments={
            "x_ptr": x,
            "weight_ptr": weight,
            "bias_ptr": weight if bias is None else bias,  # a placeholder: not read without HAS_BIAS
            "out_ptr": out,
            "tokens": tokens,
            "x_stride": stride,
            "weight_stride": weight.stride(0),
        },
        constants={
            "K": inner,
            "N": columns,
            "HAS_BIAS": bias is not None,
            "BLOCK_M": tile.tokens,
            "BLOCK_N": tile.columns,
            "BLOCK_K": tile.inner,
            "BAND": BAND,
        },
        warps=tile.warps,
        stages=tile.stages,
    )
    return launch, out


def tile_for(dtype: torch.dtype, capability: int) -> Tile:
    if capability == INTERPRETER:
        return INTERPRETED_TILE
    if dtype == torch.float32:
        return FLOAT_TILE
    return HALF_TILES.get(capability, SMALL_HALF_TILE)
