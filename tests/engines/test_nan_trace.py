"""The first layer that makes inf or NaN of finite numbers is found, counted and named; harmless ones are not blamed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from dive_fast.engines.nan_trace import first_bad_layer
from dive_fast.engines.node_runner import SCOPES, run_nodes
from dive_fast.types import DiveError, InputError
from tests.support.graphs import named, reweigh, write_graph
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH


def node(op: str, inputs: Sequence[str], output: str, scope: str = "", **attributes: Any) -> onnx.NodeProto:
    made = helper.make_node(op, inputs, [output], name=f"node_{output}", **attributes)
    if scope:
        made.metadata_props.add(key=SCOPES, value=str(["", scope, output]))
    return made


def write(folder: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray]) -> Path:
    """A graph x [rows, 4] -> y in `<folder>/net/model.onnx`."""
    return write_graph(folder / "net/model.onnx", nodes, weights, "x", [4], "y")


CHAIN = [
    node("MatMul", ["x", "w1"], "a", "unet.down_blocks.0.proj"),
    node("MatMul", ["a", "w2"], "b", "unet.down_blocks.1.resnets.0.conv1"),
    node("Tanh", ["b"], "y", "unet.act"),
]


def test_a_float16_overflow_is_named_and_counted_although_the_output_is_finite(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, (3, 4)).astype(np.float16)
    weights = {"w1": 1e3 * np.eye(4, dtype=np.float16), "w2": np.diag([1, 40, 1, 100]).astype(np.float16)}
    path = write(tmp_path, CHAIN, weights)
    assert np.isfinite(onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]).all()

    first = (x.astype(np.float64) @ weights["w1"]).astype(np.float16)
    with np.errstate(over="ignore"):
        second = (first.astype(np.float64) @ weights["w2"]).astype(np.float16)
    infinite = int(np.isinf(second).sum())
    assert 0 < infinite < second.size  # 40 x 1000 x (1..2) overflows 65504 for some, 100 for all
    bad = first_bad_layer(path, {"x": x})
    assert bad is not None
    assert (bad.part, bad.scope, bad.op, bad.node) == ("net", "down_blocks.1.resnets.0.conv1", "MatMul", "node_b")
    assert (bad.infinite, bad.nan, bad.size) == (infinite, 0, 12)
    assert bad.inputs_reach == np.abs(first).max()
    assert bad.describe() == (
        "net: down_blocks.1.resnets.0.conv1 (MatMul) is the first layer whose output is not finite: "
        f"{infinite} inf of 12 values, its inputs reach {bad.inputs_reach:.1e}; keep it in float32 or bf16"
    )
    assert first_bad_layer(path, {"x": x / 100}) is None


def test_a_mask_of_infinities_is_meant_but_a_weight_of_them_is_not(tmp_path: Path) -> None:
    mask = np.array([0, 0, -np.inf, -np.inf], np.float32)
    masked = [node("Add", ["x", "mask"], "a"), node("Softmax", ["a"], "y", axis=-1)]
    path = write(tmp_path / "masked", masked, {"mask": mask})
    assert first_bad_layer(path, {"x": np.ones((2, 4))}) is None

    broken = np.diag([1, np.nan, 1, np.inf]).astype(np.float32)
    path = write(tmp_path / "broken", CHAIN, {"w1": np.eye(4, dtype=np.float32), "w2": broken})
    bad = first_bad_layer(path, {"x": np.ones((2, 4))})
    assert bad is not None and bad.bad_weights == 2
    assert "down_blocks.1.resnets.0.conv1 (MatMul)" in bad.describe() and "2 of its weights are not" in bad.describe()


def test_bad_inputs_and_files_are_told_apart_from_bad_layers(tmp_path: Path) -> None:
    eye = np.eye(4, dtype=np.float16)
    path = write(tmp_path, CHAIN, {"w1": eye, "w2": eye})
    for inputs, problem in (
        ({"x": np.full((1, 4), 1e5)}, "input x is not finite as float16"),
        ({"x": np.ones((1, 5))}, r"x is \['rows', 4\], got an array \[1, 5\]"),
        ({"z": np.ones((1, 4))}, "takes x, got z"),
    ):
        with pytest.raises(InputError, match=problem):
            first_bad_layer(path, inputs)
    with pytest.raises(DiveError, match="Nowhere.*CPUExecutionProvider"):
        first_bad_layer(path, {"x": np.ones((1, 4))}, "Nowhere")
    path.with_name("model.onnx.data").unlink()
    with pytest.raises(InputError, match="the weights of w. cannot be read"):
        first_bad_layer(path, {"x": np.ones((1, 4))})
    bf16 = onnx.load(path, load_external_data=False)
    bf16.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16
    onnx.save(bf16, path)
    with pytest.raises(InputError, match="bf16.*fp32 or fp16"):
        first_bad_layer(path, {"x": np.ones((1, 4))})
    path.write_bytes(b"no graph")
    with pytest.raises(InputError, match="not an ONNX graph"):
        first_bad_layer(path, {"x": np.ones((1, 4))})


def test_the_older_exporters_node_names_are_read_and_later_nodes_belong_to_their_source(tmp_path: Path) -> None:
    chain = [helper.make_node("Relu", ["x"], ["a"], name="/down_blocks.0/act/Relu"), node("Tanh", ["a"], "y")]
    path = write(tmp_path, chain, {})
    assert [run.scope for run in run_nodes(path, {"x": np.ones((1, 4))})] == ["down_blocks.0.act"] * 2


def test_slices_of_the_unet_give_the_whole_graphs_numbers_and_a_planted_fault_is_found(
    tiny_engine: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((2, *LATENT_SHAPE)).astype(np.float32),
        "timestep": np.array([500]),
        "encoder_hidden_states": rng.standard_normal((2, MAX_TOKENS, TEXT_WIDTH)).astype(np.float32),
    }
    path = tiny_engine / "unet" / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(str(path), options).run(None, inputs)[0]
    *_, last = run_nodes(path, inputs, memory=1 << 18)
    np.testing.assert_array_equal(last.outputs["out_sample"], expected)

    folder = shutil.copytree(path.parent, tmp_path / "unet")
    model = onnx.load(path, load_external_data=False)
    planted = "up_blocks.0.resnets.1.conv1.weight"
    (weight,) = (n.input[1] for n in model.graph.node if n.input[1:2] and n.input[1].endswith(planted))
    reweigh(folder / "model.onnx", named(weight), lambda values: values / np.abs(values).max() * np.float32(3e38))
    bad = first_bad_layer(folder / "model.onnx", inputs)
    assert bad is not None
    assert (bad.part, bad.scope, bad.op, bad.bad_weights) == ("unet", "up_blocks.0.resnets.1.conv1", "Conv", 0)
