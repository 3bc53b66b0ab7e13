"""The reference against torch's GroupNorm, how the kernels are planned, the choice of one, and the torch operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from dive_kernels.groupnorm_silu import groupnorm_silu, why_not_fused
from dive_kernels.groupnorm_silu.arguments import Arguments
from dive_kernels.groupnorm_silu.plan import plan
from dive_kernels.launch import Launch
from tests.support.groupnorm_cases import CASES, Case
from tests.support.kernel_cases import TYPE_IDS, TYPES, check_operator
from tests.support.refusals import refused

UNET = [Case(c, 32, shifts=s, silu=silu) for c in (320, 640, 1280) for s, silu in ((0, True), (1, True), (0, False))]
UNET += [Case(a, 32, others=b) for a, b in ((1280, 1280), (1280, 640), (640, 640), (640, 320), (320, 320))]
DECODER = [Case(128, 32), Case(256, 32), Case(512, 32), Case(512, 32, silu=False)]


@pytest.mark.parametrize("impl", ["reference", "eager", "auto"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_library_forms_are_torchs_group_norm(case: Case, impl: str) -> None:
    inputs = case.inputs(torch.float64, "cpu")
    x = inputs["x"] if inputs["shift"] is None else inputs["x"] + inputs["shift"][:, :, None, None]
    x = x if inputs["skip"] is None else torch.cat([x, inputs["skip"]], 1)
    normal = torch.group_norm(x, case.groups, inputs["weight"], inputs["bias"], 1e-5)
    got = groupnorm_silu(**inputs, impl=impl)
    torch.testing.assert_close(got, functional.silu(normal) if case.silu else normal, rtol=1e-9, atol=1e-9)
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", TYPES[1:], ids=TYPE_IDS[1:])
def test_the_reference_computes_half_types_in_float32(dtype: torch.dtype) -> None:
    inputs = CASES["10-shift-a-row"].inputs(dtype, "cpu")
    widened = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    got = groupnorm_silu(**inputs, impl="reference")
    assert torch.equal(got, groupnorm_silu(**widened, impl="reference").to(dtype))


def launches(case: Case, dtype: torch.dtype = torch.float16) -> list[Launch]:
    planned, out = plan(Arguments(**case.inputs(dtype, "meta")))
    assert out.shape == (case.rows, case.own + case.others, *case.size)
    assert out.is_contiguous(memory_format=torch.channels_last)
    return planned


@pytest.mark.parametrize("rows", [1, 2, 36, 144])
@pytest.mark.parametrize("size", [(1, 1), (8, 4), (63, 31), (64, 32), (512, 256)], ids=str)
def test_chunks_cover_a_row_once_and_fill_a_gpu(rows: int, size: tuple[int, int]) -> None:
    statistics, apply = launches(Case(320, 32, rows=rows, size=size))
    tokens, chunks, each = (statistics.arguments[name] for name in ("tokens", "chunks", "chunk_tokens"))
    assert (chunks - 1) * each < tokens == size[0] * size[1] <= chunks * each
    assert statistics.grid == (rows * 5 * chunks,)
    assert apply.grid == (rows * 5 * -(-tokens // 64),)
    assert statistics.grid[0] >= 4096 / 2 or each == 128  # programs enough, or chunks as small as they get


def test_stable_diffusion_needs_few_compilations() -> None:
    """One for each (kernel, channels, flags), whatever rows and sizes; no column of a tile is wasted."""
    first = {launch.identity for case in UNET for launch in launches(case)}
    assert len(first) == 25
    assert len(first | {launch.identity for case in DECODER for launch in launches(case)}) == 32
    for case in UNET:
        other = Case(case.own, 32, case.others, 5, (64, 32), 5 * case.shifts, case.silu)
        assert [launch.identity for launch in launches(other)] == [launch.identity for launch in launches(case)]
        assert all((case.own + case.others) % launch.constants["BLOCK_C"] == 0 for launch in launches(case))
        assert all(case.own % launch.constants["BLOCK_C"] == 0 for launch in launches(case))


def test_explicit_fused_raises_with_every_reason() -> None:
    inputs = Case(8, 4, others=4).inputs(torch.float64, "cpu")
    inputs["x"] = inputs["x"].contiguous()
    inputs["weight"] = torch.ones(24, dtype=torch.float64)[::2]
    reasons = ("impl='fused' cannot run", "skip is on cpu", "bias is torch.float64", "x has strides (256, 32, 4, 1)")
    refused((*reasons, "weight has strides (2,)"), groupnorm_silu, **inputs, impl="fused", error=ValueError)
    huge = torch.empty(1, 2**12, 2**10, 2**9, device="meta").to(memory_format=torch.channels_last)
    assert "needs at most 2147483647 elements a row, got 2147483648" in why_not_fused(huge, huge, huge)


def test_operator_under_compile_and_without_gradients() -> None:
    inputs = Case(12, 4, others=8, rows=2, size=(5, 3)).inputs(torch.float32, "cpu")
    inputs["x"] = inputs["x"].contiguous()  # the result is channels_last all the same

    def op(*given: Any) -> torch.Tensor:
        return groupnorm_silu(**Arguments(*given)._asdict())

    check_operator(torch.ops.dive.groupnorm_silu, op, list(inputs.values()), "auto")


def test_fake_is_shaped_and_laid_out_like_the_result() -> None:
    for case in (CASES["8-odd-size-skip"], CASES["1"], CASES["10-pixels-1x1"]):
        given = (*case.inputs(torch.float32, "cpu").values(), "eager")
        torch.library.opcheck(torch.ops.dive.groupnorm_silu.default, given, test_utils="test_faketensor")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"groups": 5}, ["8 channels cannot be divided into 5 groups"]),
        ({"groups": 0, "eps": 0.0}, ["8 channels cannot be divided into 0 groups", "eps must be above 0, got 0.0"]),
        (
            {"weight": torch.ones(7), "bias": torch.ones(8, 1)},
            ["weight must be [8], got shape (7,)", "bias must be [8], got shape (8, 1)"],
        ),
        (
            {"skip": torch.ones(2, 4, 3, 6), "shift": torch.ones(3, 8)},
            [
                "skip and shift cannot be given together",
                "skip has shape (2, 4, 3, 6), x has (2, 8, 3, 5)",
                "shift must be [2 or 1, 8], got shape (3, 8)",
                "weight must be [12], got shape (8,)",
            ],
        ),
        (
            {"weight": torch.ones(8).half(), "bias": torch.ones(8, dtype=torch.int32)},
            ["weight is torch.float16, x is torch.float32", "bias must be floating point, got torch.int32"],
        ),
        ({"eps": float("nan")}, ["eps must be above 0, got nan"]),
        ({"x": torch.ones(2, 8, 3)}, ["x must be [rows, channels, height, width], got shape (2, 8, 3)"]),
        ({"x": torch.ones(2, 8, 0, 5)}, ["x has no elements in a row, its shape is (2, 8, 0, 5)"]),
        ({"impl": "fast"}, ["impl must be auto, reference, fused or eager, got 'fast'"]),
    ],
    ids=["groups", "eps", "weights", "skip-and-shift", "types", "nan", "dimensions", "no-pixels", "impl"],
)
def test_bad_input_is_named(change: dict[str, Any], messages: list[str]) -> None:
    arguments = {"x": torch.ones(2, 8, 3, 5), "weight": torch.ones(8), "bias": torch.ones(8), "groups": 4, "eps": 1e-5}
    refused(["groupnorm_silu", *messages], groupnorm_silu, error=ValueError, **{**arguments, **change})
