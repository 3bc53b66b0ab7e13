"""Kernels in diffusers' modules: the numbers of the untouched module, none of its skip concatenations, and all undone again.

The ops run as their references, which work on a CPU; how each is right in itself is for tests/kernels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from dive_fast.types import InputError
from dive_fast.unet.graphs import CachedUnetGraph, KVCacheGraph, ReducedUnetGraph, UnetGraph
from dive_fast.unet.kernels import OPS, Site, Workload, fastest, use_kernels
from dive_fast.unet.optimizations import OPTIMIZATIONS, WithoutUnitScale, copied
from tests.support.tiny import _vae
from tests.support.unets import unet

# Two orders of the same float64 sums differ by what rounding does to them: by what float32 differs from float64, times
# 2^-29, their unit roundoffs' ratio. The factor is for the largest of thousands of differences being a matter of chance.
ROUNDING = 4 * 2.0**-29
WIDTHS = {"block_out_channels": (32, 64)}  # skips of the way up are then of other widths than what they join
UP_RESNETS, BANK_COLUMNS = 4, 3 * 32 + 64

Network = tuple[nn.Module, tuple[Tensor, ...]]


def vae_graph(**changes: Any) -> nn.Module:
    """The tiny VAE there and back, float64; its middle attention has one head of 16."""

    class RoundTrip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.vae = type(_vae()).from_config({**_vae().config, **changes}).eval().double()

        def forward(self, images: Tensor) -> Tensor:
            return self.vae.decode(self.vae.encode(images).latent_dist.mean, return_dict=False)[0]

    return RoundTrip()


def networks(variant: str, **changes: Any) -> Network:
    """A network in float64 and its inputs: three prompts, two images, four rows."""
    generator = torch.Generator().manual_seed(0)
    if variant == "vae":
        return vae_graph(**changes), (torch.randn(2, 3, 64, 32, dtype=torch.float64, generator=generator),)
    network = unet(**{**WIDTHS, **changes})
    sample = torch.randn(2, 8, 8, 4, dtype=torch.float64, generator=generator)
    embeddings = torch.randn(3, 32, 32, dtype=torch.float64, generator=generator)
    step, prompts, images = torch.tensor([321]), torch.tensor([2, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    if variant == "kv-cache":
        graph = WithoutUnitScale(CachedUnetGraph(network, OPTIMIZATIONS, 1000))
        with torch.no_grad():
            return graph, (sample, step, KVCacheGraph(network)(embeddings), prompts, images)
    plain = (sample[images], step, embeddings[prompts])
    if variant == "reduced":
        return ReducedUnetGraph(network, ("time_table",), 1000), plain
    if variant == "fused projections":
        network.fuse_qkv_projections()
    return UnetGraph(network), plain


VARIANTS = ["plain", "fused projections", "reduced", "kv-cache", "vae"]


@pytest.fixture(params=VARIANTS)
def given(request: pytest.FixtureRequest) -> Network:
    return networks(request.param)


def single(graph: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The answer in float32."""
    cast = lambda x: x.float() if x.is_floating_point() else x  # noqa: E731
    return copied(graph, cast)(*(cast(x) for x in inputs))


def parts(graph: nn.Module) -> dict[str, tuple[nn.Module, Any]]:
    """Every module by its name, and its attention processor."""
    return {name: (module, getattr(module, "processor", None)) for name, module in graph.named_modules()}


@torch.no_grad()
def test_equals_the_untouched_module_and_gives_it_back(given: Network) -> None:
    graph, inputs = given
    expected, before = graph(*inputs), parts(graph)
    weights = {name: (tensor.data_ptr(), tensor.shape) for name, tensor in graph.state_dict().items()}
    allowed = ROUNDING * float((single(graph, inputs).double() - expected).abs().max())
    with use_kernels(graph, impl="reference"):
        found = graph(*inputs)
        assert {name: (t.data_ptr(), t.shape) for name, t in graph.state_dict().items()} == weights
    assert expected.std() > 0.1 and not torch.equal(found, expected)
    assert float((found - expected).abs().max()) <= allowed
    after = parts(graph)
    assert list(after) == list(before)
    assert all(after[name][0] is module and after[name][1] is own for name, (module, own) in before.items())
    assert torch.equal(graph(*inputs), expected)


class Calls(TorchDispatchMode):
    """What is called: ops of ours, concatenations of images, and gathers of whole rows of a bank."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.norms: list[tuple[Tensor, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "dive":
            self.counts[func.name()] += 1
        if func is torch.ops.dive.groupnorm_silu.default:
            self.norms.append(tuple(x for x in (args[0], args[5]) if x is not None))
        self.counts["concatenations"] += func is torch.ops.aten.cat.default and args[0][0].ndim == 4
        self.counts["gathers"] += func is torch.ops.aten.index_select.default and args[0].shape[-1] == BANK_COLUMNS
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_every_layer_runs_its_op_and_no_skip_is_concatenated(given: Network) -> None:
    graph, inputs = given
    with Calls() as untouched:
        graph(*inputs)
    with use_kernels(graph, impl="reference") as applied, Calls() as called:
        graph(*inputs)
    kinds = Counter(type(module).__name__ for module in graph.modules())
    is_unet = "UNet2DConditionModel" in kinds
    blocks = kinds["BasicTransformerBlock"]
    assert called.counts["dive::groupnorm_silu"] == kinds["GroupNorm"]
    assert called.counts["dive::geglu"] == called.counts["dive::cross_attention"] == blocks == (4 if is_unet else 0)
    assert called.counts["dive::attention"] == kinds["Attention"] - blocks
    assert sum(applied.decisions.values()) == sum(count for op, count in called.counts.items() if op.startswith("dive"))
    assert called.counts["concatenations"] == called.counts["gathers"] == 0
    assert untouched.counts["concatenations"] == (UP_RESNETS if is_unet else 0)
    assert untouched.counts["gathers"] == (2 if isinstance(graph, WithoutUnitScale) else 0)
    assert sum(len(pair) == 2 for pair in called.norms) == (UP_RESNETS if is_unet else 0)
    assert graph(*inputs).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "linear"), [("plain", False), ("plain", True), ("kv-cache", False), ("kv-cache", True), ("vae", False)]
)
def test_norms_read_channels_last_images_all_the_way(variant: str, linear: bool) -> None:
    """As the fused kernel needs them; diffusers' transformers end channels-first."""
    graph, inputs = networks(variant, **({"use_linear_projection": True} if linear else {}))
    graph = graph.to(memory_format=torch.channels_last)
    images = inputs[0].contiguous(memory_format=torch.channels_last)
    with use_kernels(graph, impl="reference"), Calls() as called:
        out = graph(images, *inputs[1:])
    assert out.is_contiguous(memory_format=torch.channels_last)
    for image in (image for pair in called.norms for image in pair):
        x = image.unsqueeze(-1) if image.ndim == 3 else image
        assert x.is_contiguous(memory_format=torch.channels_last), tuple(x.shape)


@torch.no_grad()
def test_transformers_of_a_channels_last_unet_stay_so_without_any_kernel() -> None:
    """As on a GPU: diffusers' own turn to channels-first, and the skips on the way up would be concatenated so.

    With linear projections, as a convolution behind it would turn eager torch's images back.
    """
    graph, inputs = networks("kv-cache", use_linear_projection=True)
    graph = graph.to(memory_format=torch.channels_last)
    images = inputs[0].contiguous(memory_format=torch.channels_last)
    expected, orders = graph(images, *inputs[1:]), []

    class Concatenations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.cat.default and args[0][0].ndim == 4:
                orders.extend(x.is_contiguous(memory_format=torch.channels_last) for x in args[0])
            return func(*args, **(kwargs or {}))

    with Concatenations():
        graph(images, *inputs[1:])
    assert not all(orders)
    orders.clear()
    with use_kernels(graph) as applied, Concatenations():
        found = graph(images, *inputs[1:])
    assert applied.summary == "none" and len(orders) == 2 * UP_RESNETS and all(orders)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)  # 500 roundings of numbers of about 1


@torch.no_grad()
def test_the_norm_behind_a_convolution_takes_over_its_bias() -> None:
    graph, inputs = networks("kv-cache")
    biased: Counter[bool] = Counter()

    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.convolution.default:
                biased[args[2] is not None] += 1
            return func(*args, **(kwargs or {}))

    resnets = sum(type(module).__name__ == "ResnetBlock2D" for module in graph.modules())
    with use_kernels(graph, impl="reference"), Convolutions():
        graph(*inputs)
    assert biased[False] == resnets + UP_RESNETS  # of a shortcut, the half that reads the skip has none either


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("variant", ["plain", "kv-cache", "vae"])
def test_compiles_to_one_graph(variant: str) -> None:
    """fullgraph raises at a break; the numbers are the same operators' own."""
    graph, inputs = networks(variant)
    with use_kernels(graph, impl="reference"):
        expected = graph(*inputs)
        counter = CompileCounterWithBackend("aot_eager")
        found = torch.compile(graph, fullgraph=True, dynamic=False, backend=counter)(*inputs)
    torch._dynamo.reset()
    assert counter.frame_count == 1
    ops = {str(node.target) for node in counter.graphs[0].graph.nodes if "dive" in str(node.target)}
    assert len(ops) == (2 if variant == "vae" else 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)  # 500 roundings of numbers of about 1


@torch.no_grad()
def test_single_ops_can_be_asked_for_and_two_levels_of_transformers_too() -> None:
    graph, inputs = networks("plain", transformer_layers_per_block=2, layers_per_block=2)
    expected = graph(*inputs)
    for op in OPS:
        with use_kernels(graph, impl="reference", ops=(op,)) as applied, Calls() as called:
            found = graph(*inputs)
        assert {found.op for found in applied.decisions} == {op}
        assert {name for name in called.counts if name.startswith("dive")} == {f"dive::{op}"}
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)  # 500 roundings of numbers of about 1


def test_auto_leaves_everything_on_a_cpu_and_says_so() -> None:
    graph, _ = networks("kv-cache")
    before = parts(graph)
    applied = use_kernels(graph)
    assert parts(graph) == before and applied.summary == "none"
    assert all("left as it is (on cpu torch's own is taken)" in line for line in applied.report.splitlines())


def test_the_report_has_a_line_for_each_kind_and_shape() -> None:
    graph, _ = networks("kv-cache")
    applied = use_kernels(graph, impl="reference", workload=Workload(rows=8, size=(64, 32), keys=5))
    lines = applied.report.splitlines()
    assert len(lines) == len(set(lines)) == len(applied.decisions)
    assert "groupnorm_silu, 96 channels, 32 of them a skip's, SiLU, 64x32: reference (asked for), 1 x" in lines
    assert "cross_attention, 4 heads of 16, 512 tokens, 5 keys: reference (asked for), 1 x" in lines
    assert "attention reference 4 of 4" in applied.summary


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str | None, str]]:
    """Chooses for one attention of a GPU of capability 90, of which a table has these times."""

    def choose(ms: dict[str, float], compiled: bool = False, why_not: tuple[str, ...] = ()) -> tuple[str | None, str]:
        entry = {
            "op": "attention",
            "capability": 90,
            "dtype": "float16",
            "key": {"head_dim": 40},
            "work": 100,
            "ms": ms,
        }
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps({"entries": [entry]}))
        monkeypatch.setenv("DIVE_KERNELS_TABLE", str(path))
        monkeypatch.setattr("dive_fast.unet.kernels.capability", lambda device: 90)
        able = [] if why_not else ["fused"]
        site = Site("attention", "attn1", "", {"head_dim": 40}, 90, (), lambda: list(why_not), lambda: [*able, "cudnn"])
        return fastest(site, torch.device("cuda"), torch.float16, compiled)

    return choose


def test_auto_takes_what_was_measured_as_fastest(measured: Callable[..., tuple[str | None, str]]) -> None:
    times = {"sdpa": 3.0, "cudnn": 2.0, "fused": 1.0, "inductor": 0.5}
    assert measured(times) == ("fused", "measured: sdpa 3 ms, fused 1 ms, cudnn 2 ms")
    assert measured(times, compiled=True)[0] is None  # inductor's own, so the layer stays as it is
    impl, why = measured(times, why_not=("needs sm_80",))
    assert impl == "cudnn" and why == "measured: sdpa 3 ms, cudnn 2 ms; needs sm_80"
    assert measured({"sdpa": 1.0, "fused": 2.0})[0] is None


@pytest.mark.parametrize(
    ("op", "chip", "dtype", "why_not", "impl"),
    [
        ("geglu", 90, torch.float16, [], "fused"),
        ("groupnorm_silu", 90, torch.bfloat16, [], "fused"),
        ("attention", 90, torch.float16, [], None),
        ("cross_attention", 90, torch.float16, [], None),
        ("geglu", 80, torch.float16, [], None),
        ("geglu", 90, torch.float32, [], None),
        ("geglu", 90, torch.float16, ["needs triton"], None),
    ],
)
def test_unmeasured_hopper_takes_our_norms_and_geglu_and_else_the_librarys(
    op: str, chip: int, dtype: torch.dtype, why_not: list[str], impl: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dive_fast.unet.kernels.capability", lambda device: chip)
    site = Site(op, "layer", "", {"inner": 1, "outer": 1}, 1, (), lambda: why_not)
    found, why = fastest(site, torch.device("cuda"), dtype, True)
    assert found == impl and f"not measured in {str(dtype)[6:]} on compute capability {chip}" in why
    assert all(reason in why for reason in why_not)


def test_unknown_names_and_modules_that_are_no_unet_or_have_kernels_are_refused() -> None:
    graph, _ = networks("plain")
    with pytest.raises(InputError, match="'magic' .*auto, reference, fused"):
        use_kernels(graph, impl="magic")
    with pytest.raises(InputError, match="'softmax'.*cross_attention"):
        use_kernels(graph, ops=("geglu", "softmax"))
    with pytest.raises(InputError, match="Linear"):
        use_kernels(nn.Linear(2, 2))
    for op in OPS:
        with use_kernels(graph, impl="reference", ops=(op,)), pytest.raises(InputError, match="UnetGraph .*restore"):
            use_kernels(graph)
    use_kernels(graph)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"resnet_time_scale_shift": "scale_shift"},
            "resnets.0.norm1 .groupnorm_silu: time_embedding_norm scale_shift",
        ),
        ({"act_fn": "gelu"}, "groupnorm_silu: activation GELU"),
        ({"dropout": 0.5}, "dropout 0.5 in training mode"),
    ],
)
def test_other_builds_are_refused_with_the_layers_names_or_left_alone(changes: dict[str, Any], reason: str) -> None:
    graph, _ = networks("plain", **changes)
    graph.train("dropout" in changes)
    before = parts(graph)
    with pytest.raises(InputError, match=f"'reference' .*{reason}"):
        use_kernels(graph, impl="reference")
    assert parts(graph) == before
    assert f"left as it is ({reason.split(': ')[-1].split(' ')[0]}" in use_kernels(graph).report


def test_fused_says_of_every_op_why_a_cpu_cannot() -> None:
    graph, _ = networks("plain")
    before = parts(graph)
    with pytest.raises(InputError, match="impl 'fused' does not fit") as caught:
        use_kernels(graph, impl="fused")
    assert all(f"({op}: " in str(caught.value) for op in OPS) and "needs CUDA tensors" in str(caught.value)
    assert parts(graph) == before


@torch.no_grad()
def test_what_comes_with_a_call_and_does_not_fit_is_refused() -> None:
    graph, (sample, step, hidden) = networks("plain")
    network: Any = graph.unet
    mask = torch.ones(len(hidden), hidden.shape[1], dtype=torch.bool)
    with use_kernels(network, impl="reference"):
        with pytest.raises(InputError, match="attention masks are not supported"):
            network(sample, step, hidden, encoder_attention_mask=mask)
        network.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
        with pytest.raises(InputError, match="FreeU changes skips"):
            network(sample, step, hidden)
