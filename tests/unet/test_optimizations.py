"""Each optimization changes numbers by float64 rounding only, on the pocket model, and reduces the work."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dive_export.graphs import Graph, graphs
from dive_export.options import GraphOptions
from dive_fast.models import ModelBundle, fuse, load_adapter, load_bundle
from dive_fast.unet.optimizations import OPTIMIZATIONS, WithoutUnitScale, copied

ROWS = 6
# Two orders of the same float64 sums differ by what rounding does to them: by what float32 differs from float64, times
# 2^-29, their unit roundoffs' ratio. The factor is for the largest of 10,000 differences being a matter of chance.
ROUNDING = 4 * 2.0**-29


@pytest.fixture(scope="module")
def pocket() -> ModelBundle:
    return fuse(load_bundle("pocket"), load_adapter("pocket"))


@pytest.fixture(scope="module")
def exact_pocket(pocket: ModelBundle) -> ModelBundle:
    """The same model with a UNet in float64."""
    unet = copied(pocket.unet, lambda x: x.double() if x.is_floating_point() else x)
    return ModelBundle(pocket.tokenizer, pocket.text_encoder, unet, pocket.vae, pocket.scheduler_config, pocket.prompts)


def unet_graph(bundle: ModelBundle, variant: Any, optimizations: tuple[str, ...]) -> Graph:
    parts, _ = graphs(bundle, None, ROWS, GraphOptions(variant, optimizations=optimizations))
    return next(part for part in parts if part.part == "unet")


def exact(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


@pytest.fixture(scope="module")
def allowed(pocket: ModelBundle, exact_pocket: ModelBundle) -> float:
    """The largest difference that float64's rounding explains."""
    single, double = (unet_graph(bundle, "plain", ()).reference for bundle in (pocket, exact_pocket))
    inputs = unet_graph(pocket, "plain", ()).examples(ROWS)
    with torch.no_grad():
        error = (single(*inputs.values()).double() - double(*exact(inputs).values())).abs().max()
    assert 1e-7 < error < 1e-4
    return ROUNDING * float(error)


CASES = [
    *itertools.product(["plain"], [(), *[(name,) for name in OPTIMIZATIONS if name != "shared_prefix"]]),
    *itertools.product(["kv-cache"], [(), *[(name,) for name in OPTIMIZATIONS], OPTIMIZATIONS]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "optimizations"), CASES, ids=lambda value: value if isinstance(value, str) else "+".join(value)
)
def test_float64_shows_no_difference(
    exact_pocket: ModelBundle, allowed: float, variant: Any, optimizations: tuple[str, ...]
) -> None:
    graph = unet_graph(exact_pocket, variant, optimizations)
    inputs = exact(graph.examples(ROWS, seed=1))
    with torch.no_grad():
        expected = graph.reference(*inputs.values())
        found = graph.module(*graph.feeds(inputs).values())
    assert expected.dtype == torch.float64 and len(expected) == ROWS and expected.std() > 0.1
    difference = float((found - expected).abs().max())
    if "time_table" not in optimizations and variant == "plain" and "fused_qkv" not in optimizations:
        assert difference == 0  # x / 1.0 is x
    assert difference <= allowed


def test_every_timestep_has_its_row(exact_pocket: ModelBundle, allowed: float) -> None:
    graph = unet_graph(exact_pocket, "plain", ("time_table",))
    sample, _, hidden = exact(graph.examples(1)).values()
    with torch.no_grad():
        for timestep in (0, 1, 999):
            inputs = sample, torch.tensor([timestep]), hidden
            assert (graph.module(*inputs) - graph.reference(*inputs)).abs().max() <= allowed
        with pytest.raises(IndexError):
            graph.module(sample, torch.tensor([1000]), hidden)


class UnitDivisions(TorchDispatchMode):
    """Counts what divides by the number 1."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.div.Tensor and args[1] == 1
        return func(*args, **(kwargs or {}))


def test_nothing_is_divided_by_one(pocket: ModelBundle) -> None:
    """Counted in torch, as the ONNX exporter's optimiser drops most of these divisions of its own accord."""
    attentions = sum(name.endswith((".attn1", ".attn2")) for name, _ in pocket.unet.named_modules())
    resnets = sum(hasattr(module, "time_emb_proj") for module in pocket.unet.modules())
    for removed, expected in (((), attentions + resnets), (("unit_scale",), 0)):
        graph = unet_graph(pocket, "plain", removed)
        with torch.no_grad(), UnitDivisions() as counted:
            graph.module(*graph.examples(1).values())
        assert counted.count == expected


def test_the_prefix_runs_once_an_image(pocket: ModelBundle) -> None:
    graph = unet_graph(pocket, "kv-cache", OPTIMIZATIONS)
    assert isinstance(graph.module, WithoutUnitScale)
    unet = graph.module.network.unet
    seen: list[int] = []
    first = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    for layer in (unet.conv_in, unet.down_blocks[0].resnets[0], first.attn1, first.attn2, unet.conv_out):
        layer.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        graph.module(*graph.feeds(graph.examples(ROWS)).values())
    assert seen == [3, 3, 3, ROWS, ROWS]


def test_the_model_given_is_left_alone_and_its_weights_are_shared(pocket: ModelBundle) -> None:
    names = [name for name, _ in pocket.unet.named_modules()]
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in pocket.unet.state_dict().items()}
    graph = unet_graph(pocket, "kv-cache", OPTIMIZATIONS)
    assert [name for name, _ in pocket.unet.named_modules()] == names
    after = pocket.unet.state_dict()
    assert list(after) == list(before)
    assert all(after[n].data_ptr() == place and torch.equal(after[n], x) for n, (place, x) in before.items())
    own = {parameter.data_ptr() for parameter in graph.module.parameters()} - {place for place, _ in before.values()}
    assert len(own) == sum(name.endswith(".attn1") for name in names)  # the fused projections only
