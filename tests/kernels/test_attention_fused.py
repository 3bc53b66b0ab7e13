"""The Triton kernels of `attention` and `cross_attention` against float64: on a GPU, or under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from dive_kernels.attention import attention
from dive_kernels.cross_attention import cross_attention, plan
from tests.support.attention_cases import bank, exact, exact_bank, slices
from tests.support.kernel_cases import DEVICE, INTERPRETED, assert_as_good_as_torch, every_type, shape_id
from tests.support.refusals import refused

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


# The same of a bank: every head dim and number of keys around the tiles' sizes.
BANK_SHAPES = [
    (1, 1, 77, 2, 40),
    (3, 31, 77, 2, 40),
    (1, 300, 77, 1, 40),
    (3, 77, 1, 1, 80),
    (1, 128, 80, 1, 80),
    (1, 31, 64, 2, 64),
    (3, 77, 65, 1, 8),
    (1, 31, 16, 3, 8),
    (1, 128, 77, 1, 160),
    (3, 1, 128, 2, 160),
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
    banked = bank(3, 5, 77, 2, 40, torch.float32, DEVICE)
    nobody = banked._replace(query=banked.query[:0], prompt_index=banked.prompt_index[:0])
    assert cross_attention(*nobody, impl="fused").shape == (0, 5, 80)


@every_type
@pytest.mark.parametrize("shape", BANK_SHAPES, ids=shape_id)
def test_cross_attentions_error_is_within_twice_plain_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = bank(*shape, dtype, DEVICE)
    got = cross_attention(*given, impl="fused")
    assert got.is_contiguous()
    assert_as_good_as_torch(got, cross_attention(*given, impl="reference"), exact_bank(given))


@pytest.mark.parametrize("programs", [1, 2], ids=["all tiles in one program", "the last program has fewer"])
def test_one_program_works_through_several_tiles(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = bank(1, 300, 77, 1, 40, torch.float16, DEVICE)
    alone = cross_attention(*given, impl="fused")
    monkeypatch.setattr(plan, "PROGRAMS", programs)
    launch, _ = plan.plan(*given, capability=90)
    assert launch.arguments["steps"] > 1
    assert torch.equal(cross_attention(*given, impl="fused"), alone)


@every_type
def test_scores_of_a_bank_that_overflow_without_their_maximum(dtype: torch.dtype) -> None:
    given = bank(1, 31, 77, 2, 40, dtype, DEVICE, scale=8.0)
    scores = given.query[0, :, :40].double() @ given.key[2, :, :40].double().T / 40**0.5
    assert scores.max() > 89  # exp of it is beyond float32
    plain = cross_attention(*given, impl="reference")
    assert_as_good_as_torch(cross_attention(*given, impl="fused"), plain, exact_bank(given))


@pytest.mark.parametrize("wrong", [-1, 3, 1 << 40, -(1 << 40)])
def test_a_row_of_no_prompt_is_nan_and_reads_nothing(wrong: int) -> None:
    given = bank(3, 5, 77, 2, 40, torch.float32, DEVICE)
    given.prompt_index[1] = wrong
    message = f"prompt_index must be from 0 to 2, row 1 has {wrong}"
    refused(message, cross_attention, *given, impl="fused", error=ValueError)
    got = cross_attention(*given, impl="fused", validate=False)
    assert got[1].isnan().all()
    assert not got[0].isnan().any() and not got[2].isnan().any()


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_in_a_cuda_graph() -> None:
    """The range of the index is not looked at while a graph is captured: that would wait for the device."""
    given = bank(3, 128, 77, 8, 40, torch.float16, DEVICE)
    expected = cross_attention(*given, impl="fused")  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = cross_attention(*given, impl="fused")
    graph.replay()
    assert torch.equal(got, expected)
