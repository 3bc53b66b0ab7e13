"""The Triton kernel against float64: on a GPU, or under Triton's interpreter (see test_interpreter.py)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dive_kernels.geglu import api, geglu
from dive_kernels.geglu.reference import geglu_reference
from tests.support.kernel_cases import DEVICE, assert_as_good_as_torch, check_auto, every_type, shape_id
from tests.support.refusals import refused

# Tokens, K, N: Stable Diffusion's K, sizes inside one tile, around its borders and no multiple of anything.
SHAPES = [(1, 40, 24), (17, 320, 136), (130, 40, 1280), (31, 41, 33), (1, 1, 1), (64, 64, 128), (300, 8, 40)]


def inputs(tokens: int, inner: int, outer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(inner)
    x, bias = (torch.randn(shape, generator=generator) for shape in ((tokens, inner), (2 * outer,)))
    weight = torch.randn((2 * outer, inner), generator=generator) / math.sqrt(inner)
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), bias.to(DEVICE, dtype)


@every_type
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_error_is_within_twice_plain_torchs(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    given = inputs(*shape, dtype)
    exact = geglu_reference(*(tensor.double() for tensor in given))
    assert_as_good_as_torch(geglu(*given, impl="fused"), geglu_reference(*given), exact)


def test_no_bias_and_leading_dimensions() -> None:
    """x as a slice of a wider tensor, [rows, tokens, K]: one stride from token to token, larger than K."""
    x, weight, _ = inputs(15, 48, 24, torch.float32)
    x = torch.cat([x, torch.full_like(x, float("nan"))], 1).view(3, 5, 96)[..., :48]
    got = geglu(x, weight, None, impl="fused")
    assert got.shape == (3, 5, 24)
    exact = geglu_reference(x.double(), weight.double(), None)
    assert_as_good_as_torch(got, geglu_reference(x, weight, None), exact)


def test_gelu_is_the_exact_one_to_float32s_precision() -> None:
    """hidden = 1 and gate = x give gelu itself: not the tanh form, which is 5e-4 off, and 0 or x far out."""
    gates = torch.cat([torch.linspace(-14, 14, 2801), torch.tensor([-6e4, 6e4, -1e30, 0.0])]).to(DEVICE)
    weight, bias = torch.tensor([[0.0], [1.0]], device=DEVICE), torch.tensor([1.0, 0.0], device=DEVICE)
    got = geglu(gates[:, None], weight, bias, impl="fused")[:, 0].double()
    exact = functional.gelu(gates.double())
    error = (got - exact).abs()
    assert (error <= 1e-7 + torch.finfo(torch.float32).eps * exact.abs()).all()


def test_nan_stays_where_it_is() -> None:
    x, weight, bias = inputs(9, 16, 8, torch.float32)
    x[4, 3] = float("nan")
    got = geglu(x, weight, bias, impl="fused")
    assert got[4].isnan().all()
    assert got.isfinite().sum() == got.numel() - 8


def test_empty_batch() -> None:
    x, weight, bias = inputs(0, 16, 8, torch.float32)
    for impl in ("fused", "reference", "eager"):
        assert geglu(x, weight, bias, impl=impl).shape == (0, 8)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a second device")
def test_tensors_in_two_places_are_refused() -> None:
    x, weight, bias = inputs(3, 16, 8, torch.float32)
    refused("weight is on cpu, x on cuda", geglu, x, weight.cpu(), bias, impl="eager", error=ValueError)


def test_auto_takes_what_the_table_says(tmp_path: Path) -> None:
    """The kernel if a measurement has it first, torch's own for another key."""
    x, weight, bias = inputs(3, 16, 8, torch.float32)
    calls = [lambda: geglu(x, weight, bias), lambda: geglu(x, weight[:8], bias[:8])]
    check_auto("geglu", api, {"inner": 16, "outer": 8}, calls, tmp_path)
