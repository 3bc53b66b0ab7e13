"""FP8 layers inside a UNet, emulated: each within the rounding of its factors, which layers they are, and all undone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dive_fast.types import InputError
from dive_fast.unet.fp8 import PARTS, Fp8Convolution, Fp8Product, fp8_layers, use_fp8
from dive_fast.unet.graphs import CachedUnetGraph, KVCacheGraph
from dive_fast.unet.kernels import use_kernels
from dive_fast.unet.optimizations import OPTIMIZATIONS
from dive_kernels import fp8
from dive_kernels.fp8 import cudnn_graphs
from tests.support.fp8 import budget, normal, rms
from tests.support.unets import unet

NORMS_FIRST = ("groupnorm_silu", "attention", "cross_attention")


def columns(x: Tensor, w: Tensor) -> Tensor:
    return x @ w.T


@pytest.fixture
def graph() -> nn.Module:
    return CachedUnetGraph(unet(block_out_channels=(32, 64)).float(), OPTIMIZATIONS, 1000)


@torch.no_grad()
def inputs() -> tuple[Tensor, ...]:
    """Two images, four rows, three prompts."""
    bank = KVCacheGraph(unet(block_out_channels=(32, 64)).float())(normal(3, 32, 32, seed=1))
    return normal(2, 8, 8, 4), torch.tensor([321]), bank, torch.tensor([2, 0, 1, 2]), torch.tensor([0, 1, 1, 0])


def layers_of(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, kind)]


@torch.no_grad()
@pytest.mark.parametrize("images", [False, True])
def test_a_layer_is_within_the_rounding_of_its_factors(images: bool) -> None:
    layer = nn.Conv2d(48, 32, 1) if images else nn.Linear(48, 32)
    x = normal(3, 48, 7, 5).contiguous(memory_format=torch.channels_last) if images else normal(3, 35, 48)
    found = Fp8Product(layer, "auto")(x)
    exact = layer.double()(x.double())
    tokens = (x.permute(0, 2, 3, 1) if images else x).reshape(-1, 48).double()
    w = layer.weight.flatten(1)
    scales = [fp8.largest_scale(y, (1,)).double() for y in (tokens, w)]
    off = (found - exact).permute(0, 2, 3, 1) if images else found - exact
    assert bool((off.reshape(-1, 32).abs() <= budget(columns, tokens, scales[0], w, scales[1], 49)).all())
    assert rms(off) > 0


@torch.no_grad()
def test_a_convolution_is_within_the_rounding_of_its_factors() -> None:
    layer, x, scale = nn.Conv2d(16, 32, 3, padding=1), normal(3, 16, 7, 5), 2.0**-6
    found = Fp8Convolution(layer, "auto", scale)(fp8.quantised(x, scale))
    exact, w = layer.double()(x.double()), layer.weight

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return functional.conv2d(x, w, padding=1)

    allowed = budget(convolve, x.double(), scale, w, fp8.largest_scale(w, (1, 2, 3)).double(), 16 * 9 + 1)
    assert bool(((found - exact).abs() <= allowed).all())


@torch.no_grad()
def test_a_token_does_not_depend_on_the_others() -> None:
    layer, x = Fp8Product(nn.Linear(48, 32), "auto"), normal(6, 48)
    x[0] *= 1000
    torch.testing.assert_close(layer(x)[1:], layer(x[1:]), rtol=1e-6, atol=1e-6)  # float32 sums in another order


@torch.no_grad()
@pytest.mark.parametrize("kernels", [False, True])
def test_a_unet_in_fp8_and_back(graph: nn.Module, kernels: bool) -> None:
    """Errors of single parts add up as independent ones do; the largest of a few sums is at most twice that."""
    given, names = inputs(), list(graph.state_dict())
    exact, errors = graph(*given), {}
    for parts in (PARTS[:1], PARTS[1:], PARTS):
        applied = use_kernels(graph, impl="reference", ops=NORMS_FIRST) if kernels else None
        inside = use_fp8(graph, parts=parts)
        applied = inside if applied is None else applied.then(inside)
        errors[parts] = rms(graph(*given) - exact) / rms(exact)
        applied.restore()
        assert not layers_of(graph, Fp8Product) and list(graph.state_dict()) == names
        torch.testing.assert_close(graph(*given), exact, rtol=0, atol=0)
    assert all(error > 1e-4 for error in errors.values())
    assert errors[PARTS] <= 2 * (errors[PARTS[:1]] ** 2 + errors[PARTS[1:]] ** 2) ** 0.5


@torch.no_grad()
def test_norms_write_e4m3_where_a_kernel_of_ours_is_next_to_a_layer(graph: nn.Module) -> None:
    use_kernels(graph, impl="reference", ops=NORMS_FIRST)
    applied, seen = use_fp8(graph), []
    layers = [*layers_of(graph, Fp8Convolution), *(t.proj_in for t in graph.modules() if hasattr(t, "proj_in"))]
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[0].dtype))
    graph(*inputs())
    assert set(seen) == {fp8.E4M3}
    convolutions = len(layers_of(graph, Fp8Convolution))
    products = 8 * (len(layers) - convolutions)  # of each transformer
    assert fp8_layers(applied) == f"in FP8: {products} products; {convolutions} convolutions"


def test_what_stays_as_it_is_says_why(graph: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels(graph, impl="reference", ops=("geglu",))
    monkeypatch.setattr(cudnn_graphs, "missing", lambda: "needs a package")
    applied = use_fp8(graph)
    assert "products not: our GEGLU kernel computes it in half precision" in fp8_layers(applied)
    with pytest.raises(InputError, match="has FP8"):
        use_fp8(graph)
    applied.restore()
    with pytest.raises(InputError, match=r"conv1 \(needs compute capability 9.0 or later, got cpu, needs a package\)"):
        use_fp8(graph, parts=("convolutions",), impl="library")
    with pytest.raises(InputError, match="Linear"):
        use_fp8(nn.Linear(16, 16))
    with pytest.raises(InputError, match="'norms'"):
        use_fp8(graph, parts=("products", "norms"))
    assert not layers_of(graph, Fp8Product)
