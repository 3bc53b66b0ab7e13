"""The reference against diffusers' GEGLU, tiles within each chip's memory, the choice of one, and the torch operator."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_kernels.geglu import geglu, why_not_fused
from dive_kernels.geglu.plan import plan
from tests.support.kernel_cases import TYPE_IDS, TYPES, check_operator
from tests.support.refusals import refused

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB a thread block may have, by compute capability


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 16), (24, 16), (24,))
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x, weight, bias


@pytest.mark.parametrize("impl", ["reference", "eager", "auto"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no-bias"])
def test_library_forms_are_the_textbook_formula(impl: str, biased: bool) -> None:
    x, weight, bias = inputs(torch.float64)
    projected = torch.einsum("rtk,nk->rtn", x, weight) + (bias if biased else 0)
    hidden, gate = projected[..., :12], projected[..., 12:]
    normal = torch.tensor([0.5 * math.erfc(-g / math.sqrt(2)) for g in gate.flatten()], dtype=torch.float64)
    got = geglu(x, weight, bias if biased else None, impl=impl)
    torch.testing.assert_close(got, hidden * gate * normal.view_as(gate), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["reference", "eager", "auto"])
def test_library_forms_are_diffusers_geglu(impl: str) -> None:
    activations = pytest.importorskip("diffusers.models.activations")
    module = activations.GEGLU(16, 12)
    x = inputs()[0]
    with torch.no_grad():
        got = geglu(x, module.proj.weight, module.proj.bias, impl=impl)
        torch.testing.assert_close(got, module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES[1:], ids=TYPE_IDS[1:])
def test_the_reference_computes_half_types_in_float32(dtype: torch.dtype) -> None:
    given = inputs(dtype)
    widened = geglu(*(tensor.float() for tensor in given), impl="reference")
    assert torch.equal(geglu(*given, impl="reference"), widened.to(dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=TYPE_IDS)
@pytest.mark.parametrize("capability", SHARED)
def test_one_launch_a_tile_within_the_chips_memory(capability: int, dtype: torch.dtype) -> None:
    """One compilation serves any number of tokens, of which the last tile may have few."""
    weight = torch.empty(2 * 1280, 320, dtype=dtype, device="meta")
    launch, out = plan(torch.empty(2, 65, 320, dtype=dtype, device="meta"), weight, None, capability)
    tokens, columns, inner = (launch.constants[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    assert launch.grid == (math.ceil(130 / tokens) * math.ceil(1280 / columns),)
    assert out.shape == (2, 65, 1280)
    assert (tokens + 2 * columns) * inner * dtype.itemsize * launch.stages <= SHARED[capability] << 10
    other, _ = plan(torch.empty(7, 320, dtype=dtype, device="meta"), weight, None, capability)
    assert other.identity == launch.identity


def test_explicit_fused_raises_with_every_reason() -> None:
    x, weight, bias = inputs(torch.float64)
    reasons = ("impl='fused' cannot run", "x is on cpu", "bias is torch.float64", "weight has strides (1, 24)")
    given = (x.transpose(0, 1), weight.t().contiguous().t(), bias)
    refused((*reasons, "x (3, 2, 16) has strides (16, 48, 1)"), geglu, *given, impl="fused", error=ValueError)
    assert not any("stride" in reason for reason in why_not_fused(x[..., :8], weight[:, :8], bias))


def test_operator_under_compile_and_without_gradients() -> None:
    x, weight, bias = inputs()
    for given in ((x, weight, bias), (x.transpose(0, 1), weight, None)):
        check_operator(torch.ops.dive.geglu, geglu, given, "auto")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            {"x": torch.ones(3, 5), "bias": torch.ones(12)},
            ["x must be [..., 4], got shape (3, 5)", "bias must be [24], got shape (12,)"],
        ),
        ({"x": torch.tensor(1.0)}, ["x must be [..., 4], got shape ()"]),
        ({"weight": torch.ones(23, 4)}, ["weight must be [2N, K], got shape (23, 4)"]),
        ({"weight": torch.ones(24)}, ["weight must be [2N, K], got shape (24,)"]),
        ({"weight": torch.ones(24, 0), "x": torch.ones(3, 0)}, ["weight must be [2N, K], got shape (24, 0)"]),
        (
            {"weight": torch.ones(24, 4).half(), "bias": torch.ones(24, dtype=torch.int64)},
            ["weight is torch.float16, x is torch.float32", "bias must be floating point, got torch.int64"],
        ),
        ({"impl": "fast"}, ["impl must be auto, reference, fused or eager, got 'fast'"]),
    ],
    ids=["shapes", "scalar", "odd", "vector", "empty", "types", "impl"],
)
def test_bad_input_is_named(change: dict[str, Any], messages: list[str]) -> None:
    arguments = {"x": torch.ones(3, 4), "weight": torch.ones(24, 4), "bias": torch.ones(24)}
    refused(["geglu", *messages], geglu, error=ValueError, **{**arguments, **change})
