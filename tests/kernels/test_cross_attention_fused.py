"""The Triton kernel against float64: on a GPU, or under Triton's interpreter (see test_interpreter.py)."""

from __future__ import annotations

import pytest
import torch

from dive_kernels.cross_attention import cross_attention, plan
from tests.support.attention_cases import bank, exact_bank
from tests.support.kernel_cases import DEVICE, INTERPRETED, assert_as_good_as_torch, every_type, shape_id

# Rows, tokens, keys, heads, head dim: every head dim and number of keys around the tiles' sizes.
SHAPES = [
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
def test_scores_that_overflow_without_their_maximum(dtype: torch.dtype) -> None:
    given = bank(1, 31, 77, 2, 40, dtype, DEVICE, scale=8.0)
    scores = given.query[0, :, :40].double() @ given.key[2, :, :40].double().T / 40**0.5
    assert scores.max() > 89  # exp of it is beyond float32
    plain = cross_attention(*given, impl="reference")
    assert_as_good_as_torch(cross_attention(*given, impl="fused"), plain, exact_bank(given))


@pytest.mark.parametrize("wrong", [-1, 3, 1 << 40, -(1 << 40)])
def test_a_row_of_no_prompt_is_nan_and_reads_nothing(wrong: int) -> None:
    given = bank(3, 5, 77, 2, 40, torch.float32, DEVICE)
    given.prompt_index[1] = wrong
    with pytest.raises(ValueError, match=f"prompt_index must be from 0 to 2, row 1 has {wrong}"):
        cross_attention(*given, impl="fused")
    got = cross_attention(*given, impl="fused", validate=False)
    assert got[1].isnan().all()
    assert not got[0].isnan().any() and not got[2].isnan().any()


def test_empty_batch() -> None:
    given = bank(3, 5, 77, 2, 40, torch.float32, DEVICE)
    none = given._replace(query=given.query[:0], prompt_index=given.prompt_index[:0])
    assert cross_attention(*none, impl="fused").shape == (0, 5, 80)


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
