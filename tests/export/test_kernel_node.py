"""The node `dive::cross_attention`: its body's numbers, one a cross-attention, and that all that reads graphs reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dive_export import GraphOptions
from dive_export.graphs import Graph, graphs
from dive_export.kernel_node import BODY, DOMAIN, NAME, attributes, kernel_nodes
from dive_export.onnx import export_graph, measure_parity
from dive_export.precision import upcast_bfloat16
from dive_export.probe import graph_parity
from dive_export.qdq import find_layers, insert
from dive_export.tensorrt_cache import graph_hash
from dive_export.tensorrt_refit import first_difference
from dive_fast.engines.node_runner import read_graph, run_nodes
from dive_fast.models import load_bundle
from dive_fast.unet.graphs import cross_attentions
from tests.support.kernel_cases import assert_as_good_as_torch
from tests.support.kernel_nodes import attended, one_node
from tests.support.tensorrt_engines import rtx_parser
from tests.support.tiny import ENGINE_ROWS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def graph(tiny_fused: Path) -> Graph:
    """The tiny model's bank UNet with the nodes, as it goes into the exporter."""
    parts, _ = graphs(load_bundle(tiny_fused), None, ENGINE_ROWS, GraphOptions("kv-cache", kernels=True))
    return next(part for part in parts if part.part == "unet")


@pytest.fixture(scope="module")
def exported(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("node") / "unet" / "model.onnx"
    export_graph(graph, path)  # runs onnx's checker
    return path


def session(model: Any) -> Any:
    """Of a model or its path, quiet about what it could not fold."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


ELEMENTS = {torch.float32: onnx.TensorProto.FLOAT, torch.float16: onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("rows", "tokens", "heads", "head_dim", "keys", "prompts"),
    [(1, 1, 1, 8, 1, 1), (5, 33, 8, 40, 77, 3), (3, 16, 2, 160, 80, 7)],
)
def test_the_body_computes_attention_to_the_rows_own_prompt(
    dtype: torch.dtype, rows: int, tokens: int, heads: int, head_dim: int, keys: int, prompts: int
) -> None:
    """Columns in the middle of the bank; the others are NaN, and so is every prompt that no row names."""
    channels, start = heads * head_dim, 24
    generator = torch.Generator().manual_seed(rows)
    query = torch.randn(rows, tokens, channels, generator=generator).to(dtype)
    index = torch.randint(0, prompts, (rows,), generator=generator)
    bank = torch.full((prompts, 2, keys, start + channels + 16), torch.nan).to(dtype)
    named = index.unique()
    bank[named, :, :, start : start + channels] = torch.randn(len(named), 2, keys, channels, generator=generator).to(
        dtype
    )
    model = one_node(ELEMENTS[dtype], heads, start, channels, bank.shape[-1])
    found = session(model).run(None, {"q": query.numpy(), "b": bank.numpy(), "i": index.numpy()})[0]
    key, value = bank[index][..., start : start + channels].unbind(1)
    expected = [attended(*(x.to(kind) for x in (query, key, value)), heads) for kind in (dtype, torch.float64)]
    assert_as_good_as_torch(torch.from_numpy(found), *expected)


def test_every_cross_attention_is_one_node_on_its_own_columns(exported: Path, tiny_fused: Path) -> None:
    model = onnx.load(exported, load_external_data=False)
    nodes = kernel_nodes(model.graph)
    layers = cross_attentions(load_bundle(tiny_fused).unet)
    stops = np.cumsum([layer.to_k.out_features for _, layer in layers])
    columns = {name: (stop - layer.to_k.out_features, stop) for (name, layer), stop in zip(layers, stops, strict=True)}
    found = {}
    for node in nodes:
        given = attributes(node)
        (scopes,) = (note.value for note in node.metadata_props)
        (name,) = (name for name in columns if name in scopes)
        found[name] = (given["start"], given["stop"])
        assert given["heads"] == dict(layers)[name].heads
        assert list(node.input)[1:] == ["kv_bank", "prompt_index"]  # the graph's own inputs: nothing stands between
    assert found == columns
    readers = [node for node in model.graph.node if {"kv_bank", "prompt_index"} & set(node.input)]
    assert readers == nodes
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, NAME)]


def test_onnxruntime_is_within_budget(graph: Graph, exported: Path) -> None:
    parity = measure_parity(graph, exported)
    assert 0 < parity.worst <= parity.budget


def test_probes_see_through_the_node(graph: Graph, exported: Path) -> None:
    rows = graph_parity(graph, exported)
    assert all(row.rms is not None and row.rms < 1e-5 for row in rows if "attentions.1" in row.block)
    inputs = {name: tensor.numpy() for name, tensor in graph.feeds(graph.examples(3)).items()}
    seen = [run for run in run_nodes(exported, inputs) if run.node.domain == DOMAIN]
    assert len(seen) == len(kernel_nodes(read_graph(exported).graph)) and all(".attn2" in run.scope for run in seen)
    assert all(np.isfinite(array).all() for run in seen for array in run.outputs.values())


def test_fp8_surgery_leaves_it_alone(exported: Path) -> None:
    model = read_graph(exported)
    layers = find_layers(model.graph)
    assert sum(".attn2." in layer.name for layer in layers) == 2 * len(kernel_nodes(model.graph))  # to_q and to_out
    quantised = insert(model, exported, layers, {layer.activation: 8.0 for layer in layers})
    assert list(quantised.functions) == list(model.functions)
    pairs = zip(kernel_nodes(quantised.graph), kernel_nodes(model.graph), strict=True)
    assert all(one.attribute == other.attribute for one, other in pairs)


def test_bf16_runs_with_its_values_in_single_precision(tmp_path: Path) -> None:
    onnx.save(one_node(onnx.TensorProto.BFLOAT16, 2, 8, 16, 32), tmp_path / "bf16.onnx")
    upcast_bfloat16(tmp_path / "bf16.onnx", tmp_path / "single.onnx")
    query, bank, index = torch.randn(3, 4, 16), torch.randn(2, 2, 5, 32), torch.tensor([1, 0, 1])
    feeds = {"q": query.numpy(), "b": bank.numpy(), "i": index.numpy()}
    found = session(tmp_path / "single.onnx").run(None, feeds)[0]
    key, value = bank[index][..., 8:24].unbind(1)
    expected = [attended(*(x.to(kind) for x in (query, key, value)), 2) for kind in (torch.float32, torch.float64)]
    assert_as_good_as_torch(torch.from_numpy(found), *expected)


def test_another_body_is_another_graph(exported: Path, tmp_path: Path) -> None:
    """For the cache of plans and for a refit, although the graph's own nodes are the same."""
    model = onnx.load(exported)
    other = tmp_path / "model.onnx"
    onnx.save(model, other)
    same = graph_hash(other, {})
    assert first_difference(exported, other, set()) == ""
    model.functions[0].node[-1].attribute.append(onnx.helper.make_attribute("scale", 0.5))
    onnx.save(model, other)
    assert graph_hash(other, {}) != same
    assert first_difference(exported, other, set()).startswith("function 0 (cross_attention) differs")


def test_tensorrt_rtx_parses_each_node_as_its_body(exported: Path) -> None:
    """Every attention reads other columns: the parser keeps the bodies' names apart, though they are the same."""
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'dive-fast[rtx]'")
    log, _, network, parser = rtx_parser(rtx)
    assert parser.parse_from_file(str(exported)), log.errors
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    made_by = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    attentions = [layer for layer in layers if layer.type == rtx.LayerType.ATTENTION_INPUT]
    nodes = kernel_nodes(read_graph(exported).graph)
    assert len(attentions) == 2 * len(nodes)  # with the self-attentions
    cuts = [cut for layer in attentions for cut in [column_cut(layer, made_by, rtx)] if cut is not None]
    assert len(cuts) == len(set(cuts)) == len(nodes)


def column_cut(attention: Any, made_by: dict[str, Any], rtx: Any) -> str | None:
    """The slice of the bank that an attention's keys come from; None for a self-attention."""
    for layer in upwards(attention.get_input(1), made_by):
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        if layer.type == rtx.LayerType.SLICE and inputs[0].name == "kv_bank":
            return str(layer.name)
    return None


def upwards(tensor: Any, made_by: dict[str, Any]) -> Iterator[Any]:
    """The chain of layers that made a tensor, by their first inputs, as far as a matrix product."""
    while tensor is not None and tensor.name in made_by:
        layer = made_by[tensor.name]
        yield layer
        tensor = layer.get_input(0) if layer.num_inputs else None


def test_the_body_has_no_names_that_a_graph_may_have(exported: Path) -> None:
    """TensorRT takes a body's input for the graph's tensor of that name, if there is one."""
    model = onnx.load(exported, load_external_data=False)
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    names |= {tensor.name for tensor in model.graph.initializer}
    own = {name for node in onnx.parser.parse_function(BODY).node for name in (*node.input, *node.output)}
    assert not names & own and all(name.startswith("dive_") for name in own)
