"""`geglu` as one Triton kernel: both halves of the projection from one read of x. Importing this file imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _gelu(x):
    """Exact GELU to float32's precision: relu(x) - |x| Q(|x|), where Q is the normal distribution's upper tail.

    log2 Q is smooth. Its polynomial, fitted by least squares weighted for the error of GELU, takes 11 instructions an
    element on sm_90 where erf takes 32, which matters where K is small. It falls towards minus infinity, so that the
    tail ends in 0 for any x, and nothing cancels as in 1 + erf. Absolute error below 1e-7 (tests).
    """
    size = tl.abs(x)
    log2_tail = size * -1.9020456e-06 + 2.805654e-05
    log2_tail = log2_tail * size - 0.000131470457
    log2_tail = log2_tail * size - 0.000272084872
    log2_tail = log2_tail * size + 0.00724543724
    log2_tail = log2_tail * size - 0.0526276268
    log2_tail = log2_tail * size - 0.459162146
    log2_tail = log2_tail * size - 1.15111101
    log2_tail = log2_tail * size - 1.0
    return tl.maximum(x, 0.0) - size * tl.exp2(log2_tail)


@triton.jit(do_not_specialize=["tokens"])
def geglu_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    tokens,
    x_stride,
    weight_stride,
    K: tl.constexpr,
    N: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BAND: tl.constexpr,  # tiles of tokens whose programs run side by side, so that they share weights in the L2 cache
):
    """One tile [BLOCK_M, BLOCK_N] of the result: hidden and gate side by side in one accumulator, over the same x."""
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    band = tl.program_id(0) // (BAND * tiles_n)
    inside = tl.program_id(0) % (BAND * tiles_n)
    height = tl.minimum(tiles_m - band * BAND, BAND)
    token = (band * BAND + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    begin = inside // height * BLOCK_N
    both = tl.arange(0, 2 * BLOCK_N)
    both = tl.where(both < BLOCK_N, 0, N) + tl.minimum(begin + both % BLOCK_N, N - 1)
    k = tl.arange(0, BLOCK_K)

    # Tokens and columns beyond the end compute the last one again, unmasked, and are not stored. The weights of both
    # halves are one tile: on Hopper that is one wgmma of twice the width, and in its result a thread holds both of a pair.
    x_at = x_ptr + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * x_stride + k[None, :]
    weight_at = weight_ptr + both.to(tl.int64)[None, :] * weight_stride + k[:, None]
    total = tl.zeros([BLOCK_M, 2 * BLOCK_N], tl.float32)
    for start in range(0, K, BLOCK_K):
        if K % BLOCK_K:
            real = k < K - start
            x = tl.load(x_at, mask=real[None, :], other=0.0)
            weight = tl.load(weight_at, mask=real[:, None], other=0.0)
        else:
            x = tl.load(x_at)
            weight = tl.load(weight_at)
        total = tl.dot(x, weight, total, input_precision="ieee")
        x_at += BLOCK_K
        weight_at += BLOCK_K
    hidden, gate = total.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1).split()

    column = begin + tl.arange(0, BLOCK_N)
    real = column < N
    if HAS_BIAS:
        hidden += tl.load(bias_ptr + column, mask=real, other=0.0).to(tl.float32)[None, :]
        gate += tl.load(bias_ptr + N + column, mask=real, other=0.0).to(tl.float32)[None, :]
    result = hidden * _gelu(gate)
    at = out_ptr + token.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(at, result.to(out_ptr.dtype.element_ty), mask=(token < tokens)[:, None] & real[None, :])
