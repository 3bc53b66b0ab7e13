"""`groupnorm_silu` as two Triton kernels: statistics, then normalisation. Importing this file imports Triton.

Both walk tiles of [tokens, columns]; a token is a pixel, a column a channel of x or, from C1 on, of skip. A tile of
columns is a power of two wide whatever the size of a group, so that Stable Diffusion's channels (all multiples of 64)
fill it and every load is 16 bytes a thread. A group may lie in several tiles ("slots") and a row in several chunks of
tokens: a part of its statistics is one (chunk, slot). Parts are merged by the formula for combined samples of Chan, Golub
and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979): means and sums of squared
deviations from them, never E[x^2] - E[x]^2, so a mean far from zero costs no digits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first_token(x_ptr, skip_ptr, row, tokens, tile, C1: tl.constexpr, C2: tl.constexpr, BLOCK_C: tl.constexpr):
    """Where each column of a tile begins in a row, and how far on its next token is."""
    lane = tl.arange(0, BLOCK_C)
    column = tile * BLOCK_C
    at_x = x_ptr + row * tokens * C1 + column
    at_skip = skip_ptr + row * tokens * C2 + (column - C1)
    if C2 == 0:
        first = at_x + lane
        step = C1
    elif C1 % BLOCK_C == 0:  # a tile has one source: provably consecutive addresses, so loads stay wide
        first = tl.where(column < C1, at_x, at_skip) + lane
        step = tl.where(column < C1, C1, C2)
    else:
        first = tl.where(column + lane < C1, at_x + lane, at_skip + lane)
        step = tl.where(column + lane < C1, C1, C2)[None, :]
    return first, step


@triton.jit
def _shift(shift_ptr, row, shift_stride, columns, C1: tl.constexpr):
    """What a row's columns are shifted by: it moves means and leaves deviations, so no element needs it."""
    return tl.load(shift_ptr + row * shift_stride + columns, mask=columns < C1, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens", "chunks", "chunk_tokens", "shift_stride"])
def groupnorm_statistics_kernel(
    x_ptr,
    skip_ptr,
    shift_ptr,
    means_ptr,
    squares_ptr,
    tokens,
    chunks,
    chunk_tokens,
    shift_stride,
    C1: tl.constexpr,
    C2: tl.constexpr,
    GROUP: tl.constexpr,  # channels of one group
    SLOTS: tl.constexpr,  # tiles that a group lies in, at most
    LOCAL: tl.constexpr,  # groups that a tile touches, at most, as a power of two
    HAS_SHIFT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Mean and sum of squared deviations [rows, groups, chunks, SLOTS] of one tile of columns in one chunk of a row."""
    tiles: tl.constexpr = (C1 + C2 + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0) % tiles
    chunk = tl.program_id(0) // tiles % chunks
    row = (tl.program_id(0) // tiles // chunks).to(tl.int64)
    begin = chunk * chunk_tokens
    count = tl.minimum(chunk_tokens, tokens - begin)
    lanes = tl.arange(0, BLOCK_T)
    columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    real = columns < C1 + C2 if (C1 + C2) % BLOCK_C else tl.full([BLOCK_C], 1, tl.int1)
    first, step = _first_token(x_ptr, skip_ptr, row, tokens, tile, C1, C2, BLOCK_C)

    # Each lane takes every BLOCK_T-th token and keeps its own statistics (Welford 1962): no exchange inside the loop.
    mean = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for turn in tl.range(0, tl.cdiv(count, BLOCK_T), num_stages=3):  # loads run two tiles ahead
        inside = turn * BLOCK_T + lanes < count
        at = first[None, :] + (begin + turn * BLOCK_T + lanes)[:, None] * step
        value = tl.load(at, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)
        deviation = tl.where(inside[:, None], value - mean, 0.0)
        mean += deviation * (1.0 / (turn + 1))
        squares += deviation * (value - mean)

    # Lanes to columns, columns to groups.
    seen = tl.maximum((count - lanes + BLOCK_T - 1) // BLOCK_T, 0).to(tl.float32)[:, None]
    column_mean = tl.sum(seen * mean, 0) / count
    mean -= column_mean[None, :]
    column_squares = tl.sum(squares + seen * mean * mean, 0)
    if HAS_SHIFT:
        column_mean += _shift(shift_ptr, row, shift_stride, columns, C1)

    first_group = tile * BLOCK_C // GROUP
    groups = first_group + tl.arange(0, LOCAL)
    member = (columns // GROUP == groups[:, None]) & real[None, :]  # [LOCAL, BLOCK_C]
    width = tl.sum(member.to(tl.int32), 1)
    group_mean = tl.sum(tl.where(member, column_mean[None, :], 0.0), 1) / tl.maximum(width, 1)
    off = column_mean[None, :] - group_mean[:, None]
    group_squares = tl.sum(tl.where(member, column_squares[None, :] + count * off * off, 0.0), 1)
    slot = tile - groups * GROUP // BLOCK_C
    part = ((row * ((C1 + C2) // GROUP) + groups) * chunks + chunk) * SLOTS + slot
    tl.store(means_ptr + part, group_mean, mask=width > 0)
    tl.store(squares_ptr + part, group_squares, mask=width > 0)


@triton.jit(do_not_specialize=["rows", "tokens", "chunks", "chunk_tokens", "shift_stride"])
def groupnorm_apply_kernel(
    x_ptr,
    skip_ptr,
    shift_ptr,
    weight_ptr,
    bias_ptr,
    means_ptr,
    squares_ptr,
    out_ptr,
    rows,
    tokens,
    chunks,
    chunk_tokens,
    shift_stride,
    eps,
    inverse_scale,
    C1: tl.constexpr,
    C2: tl.constexpr,
    GROUP: tl.constexpr,
    SLOTS: tl.constexpr,
    LOCAL: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    SILU: tl.constexpr,
    FP8: tl.constexpr,  # the result over a scale, cut off where e4m3 ends; the store rounds it
    PARTS: tl.constexpr,  # parts merged at a time
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Merges the parts of a tile's groups; then (x - mean) / deviation * weight + bias, and SiLU, of the tile."""
    tiles: tl.constexpr = (C1 + C2 + BLOCK_C - 1) // BLOCK_C
    tile = tl.program_id(0) % tiles
    blocks = tl.cdiv(tokens, BLOCK_T)
    # The last rows first: the statistics kernel has just read them, so the L2 cache may still hold them.
    row = (rows - 1 - tl.program_id(0) // tiles // blocks).to(tl.int64)
    lanes = tl.program_id(0) // tiles % blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    real = columns < C1 + C2 if (C1 + C2) % BLOCK_C else tl.full([BLOCK_C], 1, tl.int1)
    first, step = _first_token(x_ptr, skip_ptr, row, tokens, tile, C1, C2, BLOCK_C)
    here = (lanes < tokens)[:, None] & real[None, :]
    value = tl.load(first[None, :] + lanes[:, None] * step, mask=here, other=0.0)  # on its way meanwhile

    first_group = tile * BLOCK_C // GROUP
    groups = first_group + tl.arange(0, LOCAL)
    mean = tl.zeros([LOCAL], tl.float32)
    squares = tl.zeros([LOCAL], tl.float32)
    seen = tl.zeros([LOCAL], tl.float32)
    for start in range(0, chunks * SLOTS, PARTS):
        part = (start + tl.arange(0, PARTS))[:, None]
        its_tokens = tl.minimum(chunk_tokens, tokens - part // SLOTS * chunk_tokens)
        its_tile = (groups * GROUP // BLOCK_C)[None, :] + part % SLOTS
        its_begin = tl.maximum(groups[None, :] * GROUP, its_tile * BLOCK_C)
        its_end = tl.minimum((groups[None, :] + 1) * GROUP, (its_tile + 1) * BLOCK_C)
        written = (part < chunks * SLOTS) & (its_begin < its_end) & (groups[None, :] < (C1 + C2) // GROUP)
        size = tl.where(written, its_tokens * (its_end - its_begin), 0).to(tl.float32)  # [PARTS, LOCAL]
        at = (row * ((C1 + C2) // GROUP) + groups)[None, :] * (chunks * SLOTS) + part
        part_mean = tl.load(means_ptr + at, mask=written, other=0.0)
        part_squares = tl.load(squares_ptr + at, mask=written, other=0.0)
        more = tl.sum(size, 0)
        more_mean = tl.sum(size * part_mean, 0) / tl.maximum(more, 1.0)
        part_mean -= more_mean[None, :]
        off = more_mean - mean
        share = more / tl.maximum(seen + more, 1.0)
        squares += tl.sum(part_squares + size * part_mean * part_mean, 0) + off * off * seen * share
        mean += off * share
        seen += more
    inverse = tl.rsqrt(squares / tl.maximum(seen, 1.0) + eps)

    mine = columns // GROUP == groups[:, None]  # [LOCAL, BLOCK_C]
    column_mean = tl.sum(tl.where(mine, mean[:, None], 0.0), 0)
    scale = tl.sum(tl.where(mine, inverse[:, None], 0.0), 0)
    scale *= tl.load(weight_ptr + columns, mask=real, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=real, other=0.0).to(tl.float32)
    if HAS_SHIFT:
        column_mean -= _shift(shift_ptr, row, shift_stride, columns, C1)
    result = (value.to(tl.float32) - column_mean[None, :]) * scale[None, :] + bias[None, :]
    if SILU:
        result = result / (1.0 + tl.exp(-result))
    if FP8:
        result = tl.clamp(result * inverse_scale, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    at = out_ptr + row * tokens * (C1 + C2) + lanes[:, None] * (C1 + C2) + columns[None, :]
    tl.store(at, result.to(out_ptr.dtype.element_ty), mask=here)
