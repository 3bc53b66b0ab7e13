"""`cross_attention` as one Triton kernel. Importing this file imports Triton.

All keys of a prompt are there at once, as one or two column tiles, so the softmax needs no second pass and no running
maximum (FlashAttention, Dao et al. 2022, needs both); a head's channels are one or two tiles too. Rounding is
FlashAttention's: scores, softmax and sums in float32, probabilities rounded to the type of the values.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cross_attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    prompt_index_ptr,
    heads,
    tokens,
    keys,
    prompts,
    steps,  # tiles of queries that one program works through
    query_row_stride,
    query_token_stride,
    key_prompt_stride,
    key_token_stride,
    value_prompt_stride,
    value_token_stride,
    out_ptr,  # [rows, tokens, heads * HEAD_DIM], contiguous
    HEAD_DIM: tl.constexpr,
    HEAD_1: tl.constexpr,  # columns of the tiles that hold a head's channels; 0 = no second tile
    HEAD_2: tl.constexpr,
    KEYS_1: tl.constexpr,  # rows of the tiles that hold the keys; 0 = no second tile
    KEYS_2: tl.constexpr,
    BLOCK: tl.constexpr,  # queries of a tile
):
    # exp(x / sqrt(d)) is exp2(x * SCALE): the GPU has exp2
    SCALE: tl.constexpr = 1.4426950408889634 * HEAD_DIM**-0.5
    # Neighbours in the grid are the heads of the same tokens, which share cache lines, then tokens of the same prompt.
    head = tl.program_id(0) % heads
    group = tl.program_id(0) // heads
    groups = tl.cdiv(tokens, BLOCK * steps)
    row = (group // groups).to(tl.int64)  # 64 bits: rows * tokens * channels may pass 2^31
    start = (group % groups) * steps * BLOCK

    prompt = tl.load(prompt_index_ptr + row)
    known = (prompt >= 0) & (prompt < prompts)  # rows of other prompts read nothing and come out as NaN
    there = tl.where(known, keys, 0)
    key_ptr += prompt * key_prompt_stride + head * HEAD_DIM
    value_ptr += prompt * value_prompt_stride + head * HEAD_DIM
    first, second = tl.arange(0, KEYS_1), KEYS_1 + tl.arange(0, KEYS_2 if KEYS_2 else 1)
    key_11 = tl.trans(_load(key_ptr, first, there, key_token_stride, 0, HEAD_1, HEAD_DIM))
    value_11 = _load(value_ptr, first, there, value_token_stride, 0, HEAD_1, HEAD_DIM)
    if HEAD_2:
        key_12 = tl.trans(_load(key_ptr, first, there, key_token_stride, HEAD_1, HEAD_2, HEAD_DIM))
        value_12 = _load(value_ptr, first, there, value_token_stride, HEAD_1, HEAD_2, HEAD_DIM)
    if KEYS_2:
        key_21 = tl.trans(_load(key_ptr, second, there, key_token_stride, 0, HEAD_1, HEAD_DIM))
        value_21 = _load(value_ptr, second, there, value_token_stride, 0, HEAD_1, HEAD_DIM)
        if HEAD_2:
            key_22 = tl.trans(_load(key_ptr, second, there, key_token_stride, HEAD_1, HEAD_2, HEAD_DIM))
            value_22 = _load(value_ptr, second, there, value_token_stride, HEAD_1, HEAD_2, HEAD_DIM)

    query_ptr += row * query_row_stride + head * HEAD_DIM
    out_ptr += row * tokens * heads * HEAD_DIM + head * HEAD_DIM
    for step in range(steps):
        token = start + step * BLOCK + tl.arange(0, BLOCK)
        query_1 = _load(query_ptr, token, tokens, query_token_stride, 0, HEAD_1, HEAD_DIM)
        scores_1 = tl.dot(query_1, key_11, input_precision="ieee")
        if HEAD_2:
            query_2 = _load(query_ptr, token, tokens, query_token_stride, HEAD_1, HEAD_2, HEAD_DIM)
            scores_1 = tl.dot(query_2, key_12, scores_1, input_precision="ieee")
        if KEYS_2:
            scores_2 = tl.dot(query_1, key_21, input_precision="ieee")
            if HEAD_2:
                scores_2 = tl.dot(query_2, key_22, scores_2, input_precision="ieee")
            scores_2 = tl.where((second < keys)[None, :], scores_2, float("-inf"))
            highest = tl.maximum(tl.max(scores_1, 1), tl.max(scores_2, 1)) * SCALE
        else:
            scores_1 = tl.where((first < keys)[None, :], scores_1, float("-inf"))
            highest = tl.max(scores_1, 1) * SCALE

        weights_1 = tl.exp2(scores_1 * SCALE - highest[:, None])
        total = tl.sum(weights_1, 1)
        weights_1 = weights_1.to(value_11.dtype)
        if KEYS_2:
            weights_2 = tl.exp2(scores_2 * SCALE - highest[:, None])
            total += tl.sum(weights_2, 1)
            weights_2 = weights_2.to(value_11.dtype)
        inverse = tl.where(known, 1.0 / total, float("nan"))[:, None]
        result_1 = tl.dot(weights_1, value_11, input_precision="ieee")
        if KEYS_2:
            result_1 = tl.dot(weights_2, value_21, result_1, input_precision="ieee")
        _store(out_ptr, token, tokens, heads, result_1 * inverse, 0, HEAD_1, HEAD_DIM)
        if HEAD_2:
            result_2 = tl.dot(weights_1, value_12, input_precision="ieee")
            if KEYS_2:
                result_2 = tl.dot(weights_2, value_22, result_2, input_precision="ieee")
            _store(out_ptr, token, tokens, heads, result_2 * inverse, HEAD_1, HEAD_2, HEAD_DIM)


@triton.jit
def _load(ptr, rows, limit, stride, START: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Channels from START on of some rows; 0 outside."""
    columns = START + tl.arange(0, WIDTH)
    inside = (rows < limit)[:, None]
    if START + WIDTH > HEAD_DIM:
        inside = inside & (columns < HEAD_DIM)[None, :]
    return tl.load(ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _store(ptr, rows, limit, heads, values, START: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    columns = START + tl.arange(0, WIDTH)
    inside = (rows < limit)[:, None]
    if START + WIDTH > HEAD_DIM:
        inside = inside & (columns < HEAD_DIM)[None, :]
    place = ptr + rows.to(tl.int64)[:, None] * (heads * HEAD_DIM) + columns[None, :]
    tl.store(place, values.to(ptr.dtype.element_ty), mask=inside)
