"""How the two fused kernels are called: they read x twice, write the result once and never make the concat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dive_kernels.groupnorm_silu.arguments import Arguments
from dive_kernels.launch import Launch

MODULE = "dive_kernels.groupnorm_silu.fused"
COLUMNS = 64  # of a tile: every channel count of Stable Diffusion is a multiple, and 64 halves are one cache line
STATISTICS_TOKENS = 32  # of a tile; float32 mean and deviations of each element stay in registers
APPLY_TOKENS = 64
# Estimates; no GPU has timed them.
LEAST_TURNS = 4  # tiles of a chunk, at least: merging chunks costs less than reading them
PROGRAMS = 4096  # of the statistics: a few waves of what 132 multiprocessors hold at a time
PARTS = 256  # of a tile's statistics, over all its groups, merged at a time: two elements a thread


def plan(given: Arguments) -> tuple[list[Launch], Tensor]:
    """Returns the statistics' launch, then the normalisation's, and the output [R, C1 + C2, h, w], channels_last."""
    x, weight, bias, groups, eps, skip, shift, silu, scale = given
    rows, own, height, width = x.shape
    channels, others, tokens = given.key["channels"], given.key["skip"], height * width
    shape = tile_shape(channels, groups)
    tiles = -(-channels // shape["BLOCK_C"])
    chunk_tokens = tokens_of_chunk(rows * tiles, tokens)
    chunks = -(-tokens // chunk_tokens)
    means = torch.empty((rows, groups, chunks, shape["SLOTS"]), dtype=torch.float32, device=x.device)
    squares = torch.empty_like(means)
    out = torch.empty(
        (rows, channels, height, width), dtype=given.result_type, device=x.device, memory_format=torch.channels_last
    )

    # Absent tensors get a placeholder, which is not read.
    sources = {"x_ptr": x, "skip_ptr": x if skip is None else skip, "shift_ptr": x if shift is None else shift}
    scratch = {"means_ptr": means, "squares_ptr": squares}
    shift_stride = 0 if shift is None or shift.shape[0] == 1 else shift.stride(0)
    sizes = {"tokens": tokens, "chunks": chunks, "chunk_tokens": chunk_tokens, "shift_stride": shift_stride}
    constants: dict[str, Any] = {"C1": own, "C2": others, **shape, "HAS_SHIFT": shift is not None}
    statistics = Launch(
        kernel=f"{MODULE}:groupnorm_statistics_kernel",
        grid=(rows * chunks * tiles,),
        arguments={**sources, **scratch, **sizes},
        constants={**constants, "BLOCK_T": STATISTICS_TOKENS},
    )
    apply = Launch(
        kernel=f"{MODULE}:groupnorm_apply_kernel",
        grid=(rows * -(-tokens // APPLY_TOKENS) * tiles,),
        arguments={
            **sources,
            "weight_ptr": weight,
            "bias_ptr": bias,
            **scratch,
            "out_ptr": out,
            "rows": rows,
            **sizes,
            "eps": float(eps),
            "inverse_scale": 1.0 if scale is None else 1 / scale,
        },
        constants={
            **constants,
            "SILU": silu,
            "FP8": scale is not None,
            "PARTS": min(32, PARTS // shape["LOCAL"]),
            "BLOCK_T": APPLY_TOKENS,
        },
    )
    return [statistics, apply], out


def tile_shape(channels: int, groups: int) -> dict[str, int]:
    """Returns the columns of a tile, and how groups and tiles overlap at most (see fused.py)."""
    block, group = min(COLUMNS, _power_of_two(channels)), channels // groups
    slots = max(((g + 1) * group - 1) // block - g * group // block + 1 for g in range(groups))
    last = channels - 1
    local = max(min(begin + block - 1, last) // group - begin // group + 1 for begin in range(0, channels, block))
    return {"GROUP": group, "SLOTS": slots, "LOCAL": _power_of_two(local), "BLOCK_C": block}


def tokens_of_chunk(columns: int, tokens: int) -> int:
    """Returns the tokens that one program of the statistics reads, if `columns` tiles of all rows run side by side."""
    wanted = -(-PROGRAMS // max(columns, 1))
    turns = max(-(-tokens // (wanted * STATISTICS_TOKENS)), LEAST_TURNS)
    return turns * STATISTICS_TOKENS


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
