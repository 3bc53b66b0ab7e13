"""e4m3 products and convolutions against float64, within the rounding of their factors; on a GPU those of the libraries."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dive_kernels import fp8
from dive_kernels.fp8 import cudnn_graphs
from dive_kernels.fp8.reference import convolution_reference
from tests.support.fp8 import budget, normal, rms, rounding, typical

no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA build of torch and a GPU")
everywhere = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])])


def columns(x: Tensor, w: Tensor) -> Tensor:
    return x @ w.T


def same_size(x: Tensor, w: Tensor) -> Tensor:
    return functional.conv2d(x, w, padding=w.shape[-1] // 2)


def chip_sum(device: str, terms: int) -> int:
    """Terms that float32 sums count as; an H100 keeps about 14 bits of a sum of 32 terms (arXiv 2412.19437)."""
    return terms if device == "cpu" else terms + 2**10 * -(-terms // 32)


def test_numbers_are_those_of_another_library() -> None:
    x = normal(20_000) * torch.exp2(torch.linspace(-14, 10, 20_000))
    x = torch.cat([x[x.abs() <= 448], torch.tensor([0.0, 448.0, -(2.0**-9), 2.0**-10, 3 * 2.0**-10])])
    wanted = x.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    found = fp8.quantised(x, 1.0)
    assert found.dtype == torch.float8_e4m3fn
    np.testing.assert_array_equal(found.float().numpy(), wanted)
    assert bool(((found.double() - x.double()).abs() <= rounding(x.double(), 1.0)).all())


def test_beyond_the_largest_is_the_largest_and_nan_stays() -> None:
    x = torch.tensor([449.0, 1e9, -1e9, torch.inf, torch.nan])
    found = fp8.quantised(x, 1.0).float()
    assert found[:4].tolist() == [448.0, 448.0, -448.0, 448.0] and bool(found[4].isnan())
    assert bool(fp8.quantised(torch.tensor([0.0, 0.0]), fp8.largest_scale(torch.zeros(2), (0,))).float().eq(0).all())
    spoiled = torch.tensor([1.0, torch.inf])
    assert bool(fp8.quantised(spoiled, fp8.largest_scale(spoiled, (0,))).float().isnan().any())


@everywhere
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 16, 16), (77, 320, 48), (130, 1280, 64)])
def test_a_product_is_within_the_rounding_of_its_factors(device: str, rows: int, inner: int, outer: int) -> None:
    x, w = normal(rows, inner).double(), normal(outer, inner, seed=1).double()
    x[:, 0] *= 50  # an outlier
    a, b = fp8.largest_scale(x, (1,)), fp8.largest_scale(w, (1,))
    given = [y.to(device) for y in (fp8.quantised(x, a), fp8.quantised(w, b), a, b.T.contiguous())]
    dtype = torch.float32 if device == "cpu" else torch.float16
    found = fp8.product(*given, dtype).cpu().double()
    allowed = budget(columns, x, a.double(), w, b.double(), chip_sum(device, inner))
    if device == "cuda":  # rounded to bfloat16, then to float16
        allowed = allowed + (2.0**-9 + 2.0**-11) * (columns(x, w).abs() + allowed)
    assert bool(((found - columns(x, w)).abs() <= allowed).all())
    assert 0 < rms(found - columns(x, w)) <= 1.5 * typical(columns, x, a.double(), w, b.double())


@everywhere
@pytest.mark.parametrize(("own", "out", "kernel"), [(16, 32, 3), (48, 16, 3), (16, 16, 1)])
def test_a_convolution_is_within_the_rounding_of_its_factors(device: str, own: int, out: int, kernel: int) -> None:
    x, w, bias = normal(3, own, 7, 5).double(), normal(out, own, kernel, kernel, seed=1).double(), normal(out, seed=2)
    x_scale, w_scale = 2.0**-5, fp8.largest_scale(w, (1, 2, 3))
    tensors = [fp8.quantised(x, x_scale), fp8.quantised(w, w_scale), w_scale.flatten() * x_scale, bias]
    tensors = [y.contiguous(memory_format=torch.channels_last) if y.ndim == 4 else y for y in tensors]
    if device == "cuda" and (reasons := fp8.why_no_convolution(torch.device("cuda"), w.shape)):
        pytest.skip("; ".join(reasons))
    dtype = torch.float32 if device == "cpu" else torch.float16
    found = fp8.convolution(*(y.to(device) for y in tensors), dtype)
    assert found.is_contiguous(memory_format=torch.channels_last)
    exact = same_size(x, w) + bias.double()[:, None, None]
    off, terms = found.cpu().double() - exact, own * kernel**2
    allowed = budget(same_size, x, x_scale, w, w_scale.double(), chip_sum(device, terms)) + 2.0**-11 * exact.abs()
    assert bool((off.abs() <= allowed).all())
    assert 0 < rms(off) <= 1.5 * typical(same_size, x, x_scale, w, w_scale.double())


@pytest.mark.parametrize(("groups", "size"), [(1, (7, 5)), (4, (16, 8)), (32, (1, 1))])
def test_no_norm_exceeds_its_scale(groups: int, size: tuple[int, int]) -> None:
    """One value that differs from all others of its group is as far from their mean as any can be."""
    x = torch.zeros(1, 64, *size, dtype=torch.float64)
    x[0, :: 64 // groups, 0, 0] = 1.0
    weight, bias = normal(64, seed=1).abs(), normal(64, seed=2).abs()
    largest = functional.group_norm(x, groups, weight.double(), bias.double(), 1e-20).max()
    scale = fp8.norm_scale(weight, bias, x[0].numel() // groups)
    assert np.log2(scale).is_integer()
    assert float(largest) <= 448 * scale
    one = fp8.norm_scale(torch.ones(4), torch.zeros(4), x[0].numel() // groups)
    reached = float(functional.group_norm(x, groups, eps=1e-20).max())
    assert 448 * one / 2 < reached <= 448 * one * (1 + 1e-12)


def test_the_operator_under_compile() -> None:
    def op(x: Tensor, w: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return fp8.convolution(x, w, scale, bias, torch.float32)

    given = [fp8.quantised(normal(2, 16, 5, 3), 1.0), fp8.quantised(normal(16, 16, 3, 3), 1.0), normal(16), normal(16)]
    wanted = convolution_reference(*given, torch.float32)
    torch.testing.assert_close(torch.compile(op, backend="eager", fullgraph=True)(*given), wanted)
    operator = torch.ops.dive.fp8_convolution.default
    torch.library.opcheck(operator, (*given, torch.float32, "auto"), test_utils="test_faketensor")


def test_the_library_is_refused_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cudnn_graphs, "missing", lambda: "needs a package")
    given = [fp8.quantised(normal(1, 4, 5, 3), 1.0), fp8.quantised(normal(20, 4, 3, 3), 1.0), normal(20), normal(20)]
    with pytest.raises(ValueError, match=r"9.0 or later, got cpu.*got 20.*got 4.*a package"):
        fp8.convolution(*given, torch.float32, impl="library")
    with pytest.raises(ValueError, match="'cutlass'"):
        fp8.convolution(*given, torch.float32, impl="cutlass")


class Node(SimpleNamespace):
    """A tensor of the stand-in's graph, and how it is computed."""

    def set_output(self, _: bool) -> Node:
        return self

    def set_data_type(self, dtype: torch.dtype) -> Node:
        self.dtype = dtype
        return self

    def __hash__(self) -> int:
        return id(self)


class Graph:
    """A stand-in for cudnn.pygraph that computes by torch, on tensors whose sizes and strides are as they were declared."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def tensor(self, **declared: Any) -> Node:
        return Node(**declared, value=lambda given: self._given(given, declared))

    def _given(self, given: dict[int, Tensor], declared: dict[str, Any]) -> Tensor:
        tensor = given[declared["name"]]
        shape = tuple(tensor.shape) if tensor.ndim == 4 else (1, len(tensor), 1, 1)
        assert shape == tuple(declared["dim"]), declared
        assert tensor.ndim == 1 or tensor.stride() == tuple(declared["stride"]), declared
        assert {torch.float8_e4m3fn: "e4m3", torch.float32: "float"}[tensor.dtype] == declared["data_type"]
        return tensor.float().reshape(shape)

    def conv_fprop(self, image: Node, weight: Node, padding: list[int], stride: list[int], dilation: list[int]) -> Node:
        convolve = functional.conv2d
        return Node(
            value=lambda given: convolve(image.value(given), weight.value(given), None, stride, padding, dilation)
        )

    def mul(self, a: Node, b: Node) -> Node:
        return Node(value=lambda given: a.value(given) * b.value(given))

    def add(self, a: Node, b: Node) -> Node:
        return Node(value=lambda given: a.value(given) + b.value(given))

    def build(self, modes: list[str]) -> None:
        if self.options["handle"] == "unable":
            raise RuntimeError("no\nengine")

    def get_workspace_size(self) -> int:
        return 3

    def execute(self, given: dict[Node, Tensor], scratch: Tensor, handle: str) -> None:
        assert len(scratch) == 3 and handle == self.options["handle"]
        (out,) = (node for node in given if not hasattr(node, "name"))
        given[out].copy_(out.value({node.name: tensor for node, tensor in given.items() if node is not out}))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the package cudnn, without CUDA's streams."""
    types = SimpleNamespace(FLOAT="float", FP8_E4M3="e4m3")
    modes = SimpleNamespace(A="A")
    module = SimpleNamespace(pygraph=Graph, data_type=types, heur_mode=modes, create_handle=lambda: "handle")
    module.set_stream = lambda handle, stream: None
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    for cached in (cudnn_graphs._handle, cudnn_graphs._planned):
        cached.cache_clear()
    return module


def test_cudnns_graph_is_the_reference(stand_in: SimpleNamespace) -> None:
    given = [fp8.quantised(normal(2, 16, 5, 3), 1.0), fp8.quantised(normal(32, 16, 3, 3), 1.0)]
    given = [x.contiguous(memory_format=torch.channels_last) for x in given] + [normal(32), normal(32, seed=1)]
    out = torch.full((2, 32, 5, 3), torch.nan).contiguous(memory_format=torch.channels_last)
    cudnn_graphs.convolved(*given, out)
    torch.testing.assert_close(out, convolution_reference(*given, torch.float32))
    stand_in.create_handle = lambda: "unable"
    cudnn_graphs._handle.cache_clear()
    cudnn_graphs._planned.cache_clear()
    with pytest.raises(cudnn_graphs.NoPlan, match=r"\(2, 16, 5, 3\).*no engine"):
        cudnn_graphs.convolved(*given, out)
