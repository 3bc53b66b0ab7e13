"""The Triton kernel against float64: on a GPU, or under Triton's interpreter (see test_interpreter.py)."""

from __future__ import annotations

import pytest
import torch

from dive_kernels.attention import attention
from tests.support.attention_cases import exact, slices
from tests.support.kernel_cases import DEVICE, assert_as_good_as_torch, every_type, shape_id

# Rows, tokens, keys, heads, head dim: every head dim, and numbers of keys around the tiles' sizes.
SHAPES = [
    (1, 1, 1, 2, 40),
    (3, 31, 31, 2, 40),
    (1, 300, 300, 1, 40),
    (2, 77, 77, 1, 80),
    (1, 128, 128, 2, 80),
    (1, 64, 64, 1, 64),
    (3, 65, 16, 1, 8),
    (1, 31, 129, 3, 8),
    (1, 128, 128, 1, 160),
    (1, 65, 65, 2, 160),
    (1, 31, 100, 1, 56),
    (1, 31, 48, 2, 24),
]


@every_type
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_within_twice_plain_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = slices(*shape, dtype, DEVICE)
    got = attention(*given, impl="fused")
    assert got.is_contiguous()
    assert_as_good_as_torch(got, attention(*given, impl="reference"), exact(*given))


@every_type
def test_scores_that_overflow_without_their_maximum(dtype: torch.dtype) -> None:
    """Largest last and first: the running maximum rises in every tile, and in none but the first."""
    given = slices(1, 31, 160, 2, 40, dtype, DEVICE, scale=8.0)
    growing = torch.linspace(0.1, 1.0, 160, device=DEVICE, dtype=dtype)[:, None]
    for factor in (growing, growing.flip(0)):
        changed = given._replace(key=given.key * factor)
        plain = attention(*changed, impl="reference")
        assert_as_good_as_torch(attention(*changed, impl="fused"), plain, exact(*changed))


def test_empty_batch() -> None:
    given = slices(3, 5, 5, 2, 40, torch.float32, DEVICE)
    none = given._replace(query=given.query[:, :0])
    assert attention(*none, impl="fused").shape == (3, 0, 80)
