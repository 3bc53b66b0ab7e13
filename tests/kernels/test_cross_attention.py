"""The reference against float64, prompts by index, and the torch operator; test_attention.py has what both ops share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dive_kernels.cross_attention import chosen, cross_attention, why_not_fused
from dive_kernels.cross_attention.plan import key_tiles, plan, why_not_in_shared_memory
from tests.support.attention_cases import Bank, bank, exact_bank
from tests.support.kernel_cases import check_operator
from tests.support.refusals import refused


@pytest.mark.parametrize("impl", ["reference", "sdpa", "flash", "auto"])
def test_against_float64(impl: str) -> None:
    """On a CPU torch has its own flash kernel."""
    given = bank(5, 31, 77, 2, 40, torch.float64, "cpu")
    got = cross_attention(*given, impl=impl)
    assert got.is_contiguous()
    torch.testing.assert_close(got, exact_bank(given), rtol=1e-12, atol=1e-12)


def test_half_types_are_computed_in_float32() -> None:
    given = bank(3, 31, 77, 2, 40, torch.float16, "cpu")
    floats = Bank(*(x.float() for x in given[:3]), *given[3:])
    got = cross_attention(*given, impl="reference")
    assert torch.equal(got, cross_attention(*floats, impl="reference").half())


@pytest.mark.parametrize("wrong", [-1, 3])
def test_an_index_of_no_prompt(wrong: int) -> None:
    given = bank(4, 5, 7, 2, 8, torch.float32, "cpu")
    given.prompt_index[1:3] = wrong
    message = f"prompt_index must be from 0 to 2, row 1 has {wrong} \\(and 1 rows more\\)"
    refused(message, cross_attention, *given, error=ValueError)
    got = cross_attention(*given, impl="reference", validate=False)
    assert got[1:3].isnan().all() and not got[::3].isnan().any()
    refused("index", cross_attention, *given, impl="sdpa", validate=False, error=IndexError)  # torch's own


def test_explicit_fused_raises_with_every_reason() -> None:
    query, key = torch.zeros(3, 48, 5).mT, torch.zeros(2, 129, 24, dtype=torch.float64)
    index = torch.zeros(2, dtype=torch.int32)
    reasons = (
        "impl='fused' cannot run",
        "key is torch.float64, query is torch.float32",
        "key has 24 channels, query 48",
        "got key (2, 129, 24), value (2, 3, 24)",
        "3 rows of query, prompt_index has shape (2,)",
        "prompt_index must be int64, got torch.int32",
        "value is on cpu",
        "value is torch.float64",
        "from 8 to 160, got 12",
        "query has strides (240, 1, 5)",
        "needs at most 128 keys, got 129",
    )
    refused(reasons, cross_attention, query, key, key[:, :3], index, 4, impl="fused", error=ValueError)


GOOD = {
    "query": torch.zeros(2, 5, 16),
    "key": torch.zeros(3, 7, 16),
    "value": torch.zeros(3, 7, 16),
    "prompt_index": torch.zeros(2, dtype=torch.int64),
    "heads": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": torch.zeros(3, 0, 16), "value": torch.zeros(3, 0, 16)}, r"got key \(3, 0, 16\)"),
        ({"prompt_index": torch.zeros(2, dtype=torch.int32)}, "prompt_index must be int64, got torch.int32"),
        ({"impl": "fast"}, "impl must be auto, .* flash or efficient, got 'fast'"),
    ],
    ids=["no keys", "int32 index", "impl"],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    refused(message, cross_attention, error=ValueError, **{**GOOD, **change})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": torch.zeros(3, 7, 16, device="meta")}, "key is on meta, query on cpu"),
        ({"prompt_index": torch.zeros(2, dtype=torch.int64, device="meta")}, "prompt_index is on meta, query on cpu"),
        ({"prompt_index": torch.zeros(4).long()[::2]}, "needs a contiguous prompt_index, got strides (2,)"),
    ],
    ids=["device", "index's device", "index's stride"],
)
def test_why_not_fused(change: dict[str, Any], reason: str) -> None:
    assert reason in why_not_fused(**{**GOOD, **change})
    assert reason not in why_not_fused(**GOOD)


def test_float_keys_must_fit_shared_memory() -> None:
    assert why_not_in_shared_memory(160, 77, torch.float32, 90) == []
    assert why_not_in_shared_memory(160, 77, torch.float32, 86) == [
        "needs 115712 bytes of shared memory a block, sm_86 has 101376"
    ]
    assert why_not_in_shared_memory(160, 128, torch.float16, 86) == []


def test_auto_on_a_cpu_is_torchs_attention() -> None:
    given = bank(3, 31, 77, 2, 40, torch.float32, "cpu")
    impl, why = chosen(*given)
    assert impl == "sdpa" and "query is on cpu" in why
    assert torch.equal(cross_attention(*given), cross_attention(*given, impl="sdpa"))


def test_keys_in_tiles() -> None:
    tiles = {1: (16, 0), 64: (64, 0), 65: (64, 16), 77: (64, 16), 128: (64, 64)}
    assert {keys: key_tiles(keys) for keys in tiles} == tiles


def test_plan_without_a_gpu() -> None:
    """As compiling ahead of time and TensorRT's plugins ask for it: inputs, whole numbers, output."""
    bank = torch.empty(5, 2, 77, 12_480, dtype=torch.float16, device="meta")
    query = torch.empty(144, 2048, 320, dtype=torch.float16, device="meta")
    index = torch.empty(144, dtype=torch.int64, device="meta")
    launch, out = plan(query, bank[:, 0, :, 640:960], bank[:, 1, :, 640:960], index, 8, 90)
    assert out.shape == query.shape
    kinds = list(launch.signature.values())
    assert kinds == ["*fp16"] * 3 + ["*i64"] + ["i32"] * (len(kinds) - 5) + ["*fp16"]
    arguments = launch.arguments
    assert arguments["key_prompt_stride"] == 2 * 77 * 12_480 and arguments["key_token_stride"] == 12_480
    assert launch.grid[0] * launch.constants["BLOCK"] * arguments["steps"] == 144 * 2048 * 8
    assert arguments["steps"] > 1 and launch.grid[0] % 144 == 0


def test_operator_under_compile_and_without_gradients() -> None:
    given = bank(3, 5, 7, 2, 8, torch.float32, "cpu")
    check_operator(torch.ops.dive.cross_attention, cross_attention, given, "auto", True)
