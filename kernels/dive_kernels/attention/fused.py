"""`attention` as one Triton kernel: FlashAttention-2 (Dao 2023), a head's channels in one or two tiles.

Importing this file imports Triton. Keys come in tiles; a running maximum and sum of each query make the softmax
exact. Scores, softmax and sums are float32, probabilities are rounded to the type of the values.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def attention_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    heads,
    tokens,
    keys,
    query_row_stride,
    query_token_stride,
    key_row_stride,
    key_token_stride,
    value_row_stride,
    value_token_stride,
    out_ptr,  # [rows, tokens, heads * HEAD_DIM], contiguous
    HEAD_DIM: tl.constexpr,
    HEAD_1: tl.constexpr,  # columns of the tiles that hold a head's channels; 0 = no second tile
    HEAD_2: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
):
    # Neighbours in the grid are the query tiles of one head, which read the same keys and values.
    tiles = tl.cdiv(tokens, QUERY_BLOCK)
    start = (tl.program_id(0) % tiles) * QUERY_BLOCK
    head = (tl.program_id(0) // tiles) % heads
    row = (tl.program_id(0) // tiles // heads).to(tl.int64)  # 64 bits: rows * tokens * channels may pass 2^31
    query_ptr += row * query_row_stride + head * HEAD_DIM
    key_ptr += row * key_row_stride + head * HEAD_DIM
    value_ptr += row * value_row_stride + head * HEAD_DIM
    out_ptr += row * tokens * heads * HEAD_DIM + head * HEAD_DIM

    query_1 = _load(query_ptr, start, tokens, query_token_stride, QUERY_BLOCK, 0, HEAD_1, HEAD_DIM, True)
    query_2 = query_1
    if HEAD_2:
        query_2 = _load(query_ptr, start, tokens, query_token_stride, QUERY_BLOCK, HEAD_1, HEAD_2, HEAD_DIM, True)
    result_1 = tl.zeros([QUERY_BLOCK, HEAD_1], tl.float32)
    result_2 = tl.zeros([QUERY_BLOCK, HEAD_2 if HEAD_2 else 16], tl.float32)  # unused without a second tile
    highest = tl.full([QUERY_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([QUERY_BLOCK], tl.float32)
    whole = keys // KEY_BLOCK * KEY_BLOCK
    queries, pointers, strides = (query_1, query_2), (key_ptr, value_ptr), (key_token_stride, value_token_stride)
    state = (result_1, result_2, highest, total)
    for first in range(0, whole, KEY_BLOCK):
        state = _attend(queries, pointers, strides, first, keys, state, HEAD_DIM, HEAD_1, HEAD_2, KEY_BLOCK, False)
    if whole < keys:
        state = _attend(queries, pointers, strides, whole, keys, state, HEAD_DIM, HEAD_1, HEAD_2, KEY_BLOCK, True)
    result_1, result_2, highest, total = state
    inverse = (1.0 / total)[:, None]
    _store(out_ptr, start, tokens, heads, result_1 * inverse, QUERY_BLOCK, 0, HEAD_1, HEAD_DIM)
    if HEAD_2:
        _store(out_ptr, start, tokens, heads, result_2 * inverse, QUERY_BLOCK, HEAD_1, HEAD_2, HEAD_DIM)


@triton.jit
def _attend(
    queries,  # of the head's two tiles
    pointers,  # of keys and values
    strides,
    first,
    keys,
    state,  # results of the two tiles, running maximum and sum
    HEAD_DIM: tl.constexpr,
    HEAD_1: tl.constexpr,
    HEAD_2: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    LAST: tl.constexpr,
):
    """Takes one tile of keys into the results, not yet divided by `total`."""
    query_1, query_2 = queries
    key_ptr, value_ptr = pointers
    key_token_stride, value_token_stride = strides
    result_1, result_2, highest, total = state
    # exp(x / sqrt(d)) is exp2(x * SCALE): the GPU has exp2
    SCALE: tl.constexpr = 1.4426950408889634 * HEAD_DIM**-0.5
    key_1 = _load(key_ptr, first, keys, key_token_stride, KEY_BLOCK, 0, HEAD_1, HEAD_DIM, LAST)
    scores = tl.dot(query_1, tl.trans(key_1), input_precision="ieee")
    if HEAD_2:
        key_2 = _load(key_ptr, first, keys, key_token_stride, KEY_BLOCK, HEAD_1, HEAD_2, HEAD_DIM, LAST)
        scores = tl.dot(query_2, tl.trans(key_2), scores, input_precision="ieee")
    if LAST:
        scores = tl.where((first + tl.arange(0, KEY_BLOCK) < keys)[None, :], scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, 1) * SCALE)
    weights = tl.exp2(scores * SCALE - higher[:, None])
    shrink = tl.exp2(highest - higher)
    total = total * shrink + tl.sum(weights, 1)
    value_1 = _load(value_ptr, first, keys, value_token_stride, KEY_BLOCK, 0, HEAD_1, HEAD_DIM, LAST)
    weights = weights.to(value_1.dtype)
    result_1 = tl.dot(weights, value_1, result_1 * shrink[:, None], input_precision="ieee")
    if HEAD_2:
        value_2 = _load(value_ptr, first, keys, value_token_stride, KEY_BLOCK, HEAD_1, HEAD_2, HEAD_DIM, LAST)
        result_2 = tl.dot(weights, value_2, result_2 * shrink[:, None], input_precision="ieee")
    return result_1, result_2, higher, total


@triton.jit
def _load(
    ptr,
    first,
    limit,
    stride,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LAST: tl.constexpr,
):
    """Channels from START on of ROWS tokens from `first` on; 0 outside. Without LAST all these tokens are there."""
    rows, columns = tl.arange(0, ROWS), START + tl.arange(0, WIDTH)
    ptr += tl.cast(first, tl.int64) * stride
    place = ptr + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    if START + WIDTH > HEAD_DIM:
        inside = (columns < HEAD_DIM)[None, :]
        if LAST:
            inside = inside & (first + rows < limit)[:, None]
        values = tl.load(place, mask=inside, other=0.0)
    elif LAST:
        values = tl.load(place, mask=(first + rows < limit)[:, None], other=0.0)
    else:
        values = tl.load(place)
    return values


@triton.jit
def _store(
    ptr,
    first,
    limit,
    heads,
    values,
    ROWS: tl.constexpr,
    START: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    rows, columns = first + tl.arange(0, ROWS), START + tl.arange(0, WIDTH)
    inside = (rows < limit)[:, None]
    if START + WIDTH > HEAD_DIM:
        inside = inside & (columns < HEAD_DIM)[None, :]
    place = ptr + rows.to(tl.int64)[:, None] * (heads * HEAD_DIM) + columns[None, :]
    tl.store(place, values.to(ptr.dtype.element_ty), mask=inside)
