"""The kv-cache variant equals the plain one on UNets of several builds; options and builds that do not fit are refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from dive_export.graphs import Graph, graphs
from dive_export.kernel_node import NodeUnetGraph
from dive_export.onnx import UPCAST, export_graph, measure_parity
from dive_export.options import GraphOptions
from dive_fast.models import ModelBundle, load_bundle
from dive_fast.types import DiveError, InputError
from dive_fast.unet.graphs import CachedUnetGraph, IndexedUnetGraph, KVCacheGraph, cross_attentions
from dive_fast.unet.optimizations import OPTIMIZATIONS
from tests.support.engines import HALF_BANK
from tests.support.graphs import dimensions
from tests.support.tiny import ENGINE_ROWS
from tests.support.unets import BUILDS, unet


@pytest.mark.parametrize("kind", [CachedUnetGraph, NodeUnetGraph])
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("optimizations", [(), OPTIMIZATIONS], ids=["none", "all"])
def test_every_variant_equals_the_plain_unet(
    kind: type[CachedUnetGraph], build: str, optimizations: tuple[str, ...]
) -> None:
    """The same float64 sums in another order: 1e-13 is 500 roundings of numbers of about 1."""
    network = unet(**BUILDS[build])
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 8, 8, 4, dtype=torch.float64, generator=generator)
    embeddings = torch.randn(3, 32, 32, dtype=torch.float64, generator=generator)
    step, prompts, images = torch.tensor([321]), torch.tensor([2, 0, 1, 2, 0]), torch.tensor([0, 1, 1, 0, 1])
    given = (sample, step, KVCacheGraph(network)(embeddings), prompts, images)
    with torch.no_grad():
        expected = IndexedUnetGraph(network)(sample, step, embeddings, prompts, images)
        rows = given if optimizations else (sample[images], *given[1:4])
        found = kind(network, optimizations, 1000)(*rows)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_columns_of_the_bank_are_in_the_order_of_the_layers_names(half_bank: Path) -> None:
    network = unet()
    layers = cross_attentions(network)
    names = [name for name, _ in layers]
    assert names == sorted(names) and names != [
        n.removesuffix(".processor") for n in network.attn_processors if ".attn2." in n
    ]
    embeddings = torch.randn(2, 32, 32, dtype=torch.float64)
    bank = KVCacheGraph(network)(embeddings)
    start = 0
    for _, layer in layers:
        stop = start + layer.to_k.out_features
        assert torch.equal(bank[:, 0, :, start:stop], layer.to_k(embeddings))
        assert torch.equal(bank[:, 1, :, start:stop], layer.to_v(embeddings))
        start = stop
    assert bank.shape == (2, 2, 32, start)
    config = json.loads((half_bank / "prompt_bank/config.json").read_text())
    assert [layer["name"] for layer in config["layers"]] == names
    assert sum(layer["width"] for layer in config["layers"]) == start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "both"}, "variant .*'both'"),
        ({"precision": "int8"}, "precision .*'int8'"),
        ({"optimizations": ("time_table", "all")}, "unknown all; choose from time_table"),
        ({"optimizations": ("shared_prefix",)}, "shared_prefix requires variant kv-cache"),
        ({"kernels": True}, "kv_gather requires variant kv-cache"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GraphOptions(**options)


@pytest.mark.parametrize(
    ("options", "applied"),
    [
        (GraphOptions(), ("time_table", "unit_scale", "fused_qkv")),
        (GraphOptions("kv-cache"), OPTIMIZATIONS),
        (GraphOptions("kv-cache", optimizations=()), ()),
        (GraphOptions("kv-cache", optimizations=("fused_qkv", "time_table")), ("time_table", "fused_qkv")),
        (GraphOptions("kv-cache", kernels=True), (*OPTIMIZATIONS, "kv_gather")),
        (GraphOptions("kv-cache", optimizations=("kv_gather", "time_table")), ("time_table", "kv_gather")),
        (GraphOptions("kv-cache", optimizations=(), kernels=True), ("kv_gather",)),
    ],
)
def test_optimizations_are_all_that_fit_by_default(options: GraphOptions, applied: tuple[str, ...]) -> None:
    assert options.applied == applied


@pytest.mark.parametrize(
    ("changes", "trait"),
    [
        ({"resnet_skip_time_act": True}, "resnet_skip_time_act"),
        ({"mid_block_type": "UNetMidBlock2D"}, "blocks UNetMidBlock2D"),
        ({"center_input_sample": True}, "center_input_sample"),
    ],
)
def test_another_build_of_unet_is_refused_not_miscomputed(changes: dict[str, Any], trait: str) -> None:
    with pytest.raises(InputError, match=f"this UNet has {trait}, .*--variant plain"):
        CachedUnetGraph(unet(**changes), (), 1000)


def unet_part(bundle: ModelBundle, rows: int, options: GraphOptions) -> Graph:
    return next(part for part in graphs(bundle, None, rows, options)[0] if part.part == "unet")


def nodes(path: Path) -> tuple[Counter[str], onnx.GraphProto]:
    graph = onnx.load(path).graph
    return Counter(node.op_type for node in graph.node), graph


def shapes(graph: onnx.GraphProto) -> dict[str, list[str | int]]:
    values = [*graph.input, *graph.output, *graph.value_info]
    return {value.name: dimensions(value) for value in values}


@pytest.fixture(scope="module")
def unreduced(tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain UNet without optimizations, in bfloat16: with `half_bank` and `tiny_engine` all variants and precisions."""
    graph = unet_part(load_bundle(tiny_fused), 4, GraphOptions(optimizations=()))
    path = tmp_path_factory.mktemp("unreduced") / "model.onnx"
    export_graph(graph, path, "bf16")
    parity = measure_parity(graph, path, "bf16")
    assert parity.measured == UPCAST and 1e-4 < parity.worst <= parity.budget < 0.1
    return path


def test_savings_show_in_the_graph(unreduced: Path, half_bank: Path, tiny_engine: Path, tiny_fused: Path) -> None:
    network = load_bundle(tiny_fused).unet
    resnets = sum(hasattr(module, "time_emb_proj") for module in network.modules())
    blocks = len(cross_attentions(network))
    # A transformer block multiplies for q, k, v, out of two attentions and twice in its feed-forward.
    before, _ = nodes(unreduced)
    assert before["MatMul"] + before["Gemm"] == 10 * blocks + 2 + resnets
    plain, _ = nodes(tiny_engine / "unet/model.onnx")
    assert plain["MatMul"] + plain["Gemm"] == 8 * blocks and plain["Div"] == 0
    bank, graph = nodes(half_bank / "unet/model.onnx")
    assert bank["MatMul"] + bank["Gemm"] == 6 * blocks
    constants = {tensor.name for tensor in graph.initializer}  # a size halved is the only division left
    divisors = [node.input[1] for node in graph.node if node.op_type == "Div"]
    assert all(tensor.data_type == onnx.TensorProto.INT64 for tensor in graph.initializer if tensor.name in divisors)
    assert set(divisors) <= constants
    assert not [t.name for t in graph.initializer if "time_emb" in t.name or "attn2.to_k" in t.name]
    assert [list(t.dims) for t in graph.initializer if t.name.endswith("time_table")] == [[1000, 32 * resnets]]
    found = shapes(graph)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert found[convolutions[0].output[0]][0] == "images" and found[convolutions[-1].output[0]][0] == "rows"


def test_a_bank_graph_has_the_names_that_engines_read(half_bank: Path) -> None:
    height, width = "2*height_over_2", "2*width_over_2"
    _, graph = nodes(half_bank / "unet/model.onnx")
    assert {value.name: dimensions(value) for value in graph.input} == {
        "sample": ["images", 8, height, width],
        "timestep": [1],
        "kv_bank": ["prompts", 2, 32, 128],
        "prompt_index": ["rows"],
        "image_index": ["rows"],
    }
    assert {value.name: dimensions(value) for value in graph.output} == {"out_sample": ["rows", 8, height, width]}
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)}
    half, whole = onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64
    halves, indices = ("sample", "kv_bank", "out_sample"), ("timestep", "prompt_index", "image_index")
    assert kinds == {**dict.fromkeys(halves, half), **dict.fromkeys(indices, whole)}
    scales = {node.input[2] for node in graph.node if node.op_type == "Resize"}  # float32 in any graph
    assert {tensor.data_type for tensor in graph.initializer if tensor.name not in scales} == {half, whole}
    _, graph = nodes(half_bank / "prompt_bank/model.onnx")
    assert shapes(graph)["encoder_hidden_states"] == ["prompts", 32, 32]
    assert shapes(graph)["kv_bank"] == ["prompts", 2, 32, 128]


def test_one_graph_serves_other_sizes(half_bank: Path, tiny_fused: Path) -> None:
    parts, _ = graphs(load_bundle(tiny_fused), (32, 96), ENGINE_ROWS, HALF_BANK)
    for graph in parts:
        if graph.part not in ("text_encoder", "prompt_bank"):
            measure_parity(graph, half_bank / graph.part / "model.onnx", "fp16", rows=[3])


def test_a_half_graph_of_other_weights_is_noticed(half_bank: Path, tiny_fused: Path) -> None:
    """Keys of one layer of four in place of its values."""
    bundles = [load_bundle(tiny_fused), load_bundle(tiny_fused)]
    _, layer = cross_attentions(bundles[1].unet)[0]
    layer.to_v.weight.data = layer.to_k.weight.data.clone()
    ours, other = (unet_part(bundle, ENGINE_ROWS, HALF_BANK) for bundle in bundles)
    with pytest.raises(DiveError, match="export unet: "):
        measure_parity(replace(ours, reference=other.reference), half_bank / "unet/model.onnx", "fp16", rows=[3])
