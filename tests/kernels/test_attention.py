"""`attention` and `cross_attention`: the reference against float64, what `auto` takes, torch's backends, bad input."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn import functional

from dive_kernels import attention as own
from dive_kernels import cross_attention as cross
from dive_kernels import sdpa, table
from dive_kernels.attention import attention
from dive_kernels.attention.plan import plan
from dive_kernels.cross_attention import cross_attention
from dive_kernels.cross_attention.plan import key_tiles, why_not_in_shared_memory
from dive_kernels.cross_attention.plan import plan as cross_plan
from tests.support.attention_cases import Bank, bank, exact, exact_bank, slices
from tests.support.kernel_cases import check_operator
from tests.support.refusals import refused

SMALL = slices(2, 5, 5, 2, 8, torch.float32, "cpu")


def test_reference_by_hand() -> None:
    """Two heads of 8: the first tells the two keys apart 1 to 3, the second not at all."""
    query = torch.zeros(1, 1, 16, dtype=torch.float64)
    query[..., 0] = math.sqrt(8) * math.log(3)
    key = torch.zeros(1, 2, 16, dtype=torch.float64)
    key[0, 1, 0] = 1
    value = torch.tensor([[4.0], [8.0]], dtype=torch.float64).expand(1, 2, 16)
    expected = torch.tensor([7.0] * 8 + [6.0] * 8, dtype=torch.float64)  # 4/4 + 3 * 8/4; the mean
    got = attention(query, key, value, 2, impl="reference")
    torch.testing.assert_close(got[0, 0], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("impl", ["reference", "sdpa", "flash", "auto"])
def test_against_float64(impl: str) -> None:
    """On a CPU torch has its own flash kernel."""
    given, banked = slices(2, 31, 45, 2, 40, torch.float64, "cpu"), bank(5, 31, 77, 2, 40, torch.float64, "cpu")
    for got, expected in (
        (attention(*given, impl=impl), exact(*given)),
        (cross_attention(*banked, impl=impl), exact_bank(banked)),
    ):
        assert got.is_contiguous()
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["cudnn", "efficient"])
def test_a_backend_that_cannot_says_so(impl: str) -> None:
    message = f"attention: impl='{impl}' cannot run on cpu, .* head dim 8: No viable"
    refused(message, attention, *SMALL, impl=impl, error=ValueError)


def test_a_backends_warnings_are_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch refuses on CUDA."""

    def refuses(*_: torch.Tensor) -> torch.Tensor:
        warnings.warn("cuDNN attention has been runtime disabled. (Triggered internally at x.h:1.)", stacklevel=1)
        warnings.warn("head_dim should be no more than 128", stacklevel=1)
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr(functional, "scaled_dot_product_attention", refuses)
    message = "head dim 8: cuDNN attention .* disabled.; head_dim should be no more than 128$"
    refused(message, attention, *SMALL, impl="cudnn", error=ValueError)


def test_another_error_of_a_backend_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(functional, "scaled_dot_product_attention", fails)
    refused("illegal memory access", attention, *SMALL, impl="flash", error=RuntimeError)


def test_explicit_fused_raises_with_every_reason() -> None:
    query, key = torch.zeros(3, 48, 5).mT, torch.zeros(2, 7, 24, dtype=torch.float64)
    reasons = (
        "impl='fused' cannot run",
        "key is torch.float64, query is torch.float32",
        "value has 24 channels, query 48",
        "got query (3, 5, 48), key (2, 7, 24), ",
        "value is on cpu",
        "from 8 to 160, got 12",
        "query has strides (240, 1, 5)",
    )
    refused(reasons, attention, query, key, key[:, :3], 4, impl="fused", error=ValueError)


GOOD: dict[str, Any] = {name: torch.zeros(2, 5, 16) for name in ("query", "key", "value")} | {"heads": 2}
INDEX = torch.zeros(2, dtype=torch.int64)
BANK = {**GOOD, "key": torch.zeros(3, 7, 16), "value": torch.zeros(3, 7, 16), "prompt_index": INDEX}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(5, 16)}, r"query must have 3 .* got shape \(5, 16\)"),
        ({"query": torch.zeros(2, 5, 16, dtype=torch.int32)}, "query must be .* got torch.int32"),
        ({"value": torch.zeros(2, 5, 16).half()}, "value is torch.float16, query is torch.float32"),
        ({"heads": 3}, "heads .* 16 channels of query, got 3"),
        ({"heads": 0}, "heads .* 16 channels of query, got 0"),
        ({"key": torch.zeros(2, 0, 16), "value": torch.zeros(2, 0, 16)}, "needs a key at least, got none"),
        ({"key": torch.zeros(1, 5, 16)}, r"got query \(2, 5, 16\), key \(1, 5, 16\)"),
        ({"impl": "fast"}, "impl must be auto, .* flash or efficient, got 'fast'"),
    ],
    ids=["rank", "integers", "two types", "heads", "no heads", "no keys", "rows", "impl"],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    refused(message, attention, error=ValueError, **{**GOOD, **change})


def test_bad_input_of_a_bank_is_named() -> None:
    none = torch.zeros(3, 0, 16)
    for change, message in (
        ({"key": none, "value": none}, r"got key \(3, 0, 16\)"),
        ({"prompt_index": INDEX.int()}, "prompt_index must be int64, got torch.int32"),
        ({"impl": "fast"}, "impl must be auto, .* flash or efficient, got 'fast'"),
    ):
        refused(message, cross_attention, error=ValueError, **{**BANK, **change})


LARGE_HEAD = {name: torch.zeros(2, 2, 168) for name in ("query", "key", "value")} | {"heads": 1}


@pytest.mark.parametrize(
    ("good", "change", "reason"),
    [
        (GOOD, {"key": torch.zeros(2, 5, 16, device="meta")}, "key is on meta, query on cpu"),
        (GOOD, {"heads": 4}, "needs a head dim that is a multiple of 8 from 8 to 160, got 4"),
        (GOOD, LARGE_HEAD, "needs a head dim that is a multiple of 8 from 8 to 160, got 168"),
        (BANK, {"key": torch.zeros(3, 7, 16, device="meta")}, "key is on meta, query on cpu"),
        (BANK, {"prompt_index": INDEX.to("meta")}, "prompt_index is on meta, query on cpu"),
        (BANK, {"prompt_index": torch.zeros(4).long()[::2]}, "needs a contiguous prompt_index, got strides (2,)"),
    ],
    ids=["device", "small head", "large head", "bank's device", "index's device", "index's stride"],
)
def test_why_not_fused(good: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    why_not = (cross if good is BANK else own).why_not_fused
    assert reason in why_not(**{**good, **change})
    assert reason not in why_not(**good)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table in which our kernel is the fastest at head dim 40, then flash; on a GPU of capability 9.0."""
    entry = {"op": "attention", "capability": 90, "dtype": "float16", "key": {"head_dim": 40}, "work": 1000}
    times = {"fused": 1.0, "flash": 2.0, "sdpa": 3.0, "cudnn": 4.0}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"entries": [{**entry, "ms": times}]}))
    monkeypatch.setenv(table.OWN, str(path))
    monkeypatch.setattr(sdpa, "capability", lambda device: 90)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize(
    ("heads", "against", "flash", "expected"),
    [
        (8, [], True, ("fused", "1.0 ms on sm_90, the least of what can run here")),
        (8, ["needs triton"], True, ("flash", "2.0 ms on sm_90, the least of what can run here")),
        (8, ["needs triton"], False, ("sdpa", "3.0 ms on sm_90, the least of what can run here")),
        (4, [], True, ("sdpa", "nobody measured attention on sm_90 with torch.float16 and {'head_dim': 80}")),
    ],
    ids=["ours", "ours cannot", "only torch's choice can", "unmeasured"],
)
def test_auto_takes_the_fastest_that_can(
    heads: int, against: list[str], flash: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa, "CAN_USE", {"cudnn": lambda _: False, "flash": lambda _: flash})
    with FakeTensorMode():
        x = torch.empty(2, 5, 320, dtype=torch.float16, device="cuda")
        assert sdpa.choice("attention", x, x, x, heads, {"head_dim": 320 // heads}, 800, against) == expected


@pytest.mark.parametrize(
    ("op", "chosen", "make"), [(attention, own.chosen, slices), (cross_attention, cross.chosen, bank)]
)
def test_auto_on_a_cpu_is_torchs_attention(op: Any, chosen: Any, make: Any) -> None:
    given = make(3, 31, 31, 2, 40, torch.float32, "cpu")
    impl, why = chosen(*given)
    assert impl == "sdpa" and "query is on cpu" in why
    assert torch.equal(op(*given), op(*given, impl="sdpa"))


@pytest.mark.parametrize("head_dim", range(8, 161, 8))
def test_head_tiles_hold_a_head_and_waste_the_least(head_dim: int) -> None:
    first, second = sdpa.head_tiles(head_dim)
    powers = [16 << n for n in range(5)]
    assert first in powers and second in (0, *powers)
    assert first + second == min(a + b for a in powers for b in (0, *powers) if a + b >= head_dim)


def test_plan_without_a_gpu() -> None:
    """As compiling ahead of time and TensorRT's plugins ask for it: inputs, whole numbers, output."""
    query, key, value = torch.empty(36, 2048, 960, dtype=torch.bfloat16, device="meta").chunk(3, -1)
    launch, out = plan(query, key, value, 8, 90)
    assert out.shape == query.shape
    kinds = list(launch.signature.values())
    assert kinds == ["*bf16"] * 3 + ["i32"] * (len(kinds) - 4) + ["*bf16"]
    assert launch.arguments["key_token_stride"] == 960 and launch.arguments["key_row_stride"] == 2048 * 960
    assert launch.grid[0] * launch.constants["QUERY_BLOCK"] == 36 * 2048 * 8
    assert (launch.constants["HEAD_1"], launch.constants["HEAD_2"]) == (32, 16)


def test_cross_attention_of_half_types_are_computed_in_float32() -> None:
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


def test_explicit_fused_raises_with_every_reason_of_a_bank() -> None:
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


def test_float_keys_must_fit_shared_memory() -> None:
    assert why_not_in_shared_memory(160, 77, torch.float32, 90) == []
    assert why_not_in_shared_memory(160, 77, torch.float32, 86) == [
        "needs 115712 bytes of shared memory a block, sm_86 has 101376"
    ]
    assert why_not_in_shared_memory(160, 128, torch.float16, 86) == []


def test_keys_in_tiles() -> None:
    tiles = {1: (16, 0), 64: (64, 0), 65: (64, 16), 77: (64, 16), 128: (64, 64)}
    assert {keys: key_tiles(keys) for keys in tiles} == tiles


def test_plan_of_a_bank_without_a_gpu() -> None:
    """As compiling ahead of time and TensorRT's plugins ask for it: inputs, whole numbers, output."""
    bank = torch.empty(5, 2, 77, 12_480, dtype=torch.float16, device="meta")
    query = torch.empty(144, 2048, 320, dtype=torch.float16, device="meta")
    index = torch.empty(144, dtype=torch.int64, device="meta")
    launch, out = cross_plan(query, bank[:, 0, :, 640:960], bank[:, 1, :, 640:960], index, 8, 90)
    assert out.shape == query.shape
    kinds = list(launch.signature.values())
    assert kinds == ["*fp16"] * 3 + ["*i64"] + ["i32"] * (len(kinds) - 5) + ["*fp16"]
    arguments = launch.arguments
    assert arguments["key_prompt_stride"] == 2 * 77 * 12_480 and arguments["key_token_stride"] == 12_480
    assert launch.grid[0] * launch.constants["BLOCK"] * arguments["steps"] == 144 * 2048 * 8
    assert arguments["steps"] > 1 and launch.grid[0] % 144 == 0


def test_operators_under_compile_and_without_gradients() -> None:
    check_operator(torch.ops.dive.attention, attention, SMALL, "auto")
    given = bank(3, 5, 7, 2, 8, torch.float32, "cpu")
    check_operator(torch.ops.dive.cross_attention, cross_attention, given, "auto", True)
