"""Graphs for onnxruntime's CUDA provider, held to plain ones; where onnxruntime placed their nodes.

No CUDA provider runs here: the operators below compute what onnxruntime documents of them. The oracle is onnx's reference
on the plain graph, of whole networks onnxruntime on the CPU.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dive_fast.engines.onnx_cuda import DOMAIN, fit_to_cuda, read_for_cuda
from dive_fast.engines.onnx_session import Network, place, placement, refuse_cpu_work
from dive_fast.types import DiveError
from tests.support.engines import near

node = helper.make_node


class GroupNorm(OpRun):
    """com.microsoft.GroupNorm: x [N, H, W, C] of any float type, gamma and beta float32 [C]."""

    op_domain = DOMAIN

    def _run(self, x, gamma, beta, activation, channels_last, epsilon, groups):  # type: ignore[no-untyped-def]
        assert channels_last == 1 and x.ndim == 4 and gamma.dtype == beta.dtype == np.float32
        assert x.shape[3] // groups % 2 == 0
        grouped = x.astype(np.float64).reshape(*x.shape[:3], groups, -1)
        mean, variance = (of(grouped, axis=(1, 2, 4), keepdims=True) for of in (np.mean, np.var))
        out = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
        return ((out / (1 + np.exp(-out)) if activation else out).astype(x.dtype),)


class SkipLayerNormalization(OpRun):
    """com.microsoft.SkipLayerNormalization without a bias: the norm of x + skip, and the sum as the fourth output."""

    op_domain = DOMAIN

    def _run(self, x, skip, gamma, beta, epsilon):  # type: ignore[no-untyped-def]
        assert x.shape == skip.shape and x.ndim == 3
        total = x.astype(np.float64) + skip
        mean, variance = (of(total, axis=-1, keepdims=True) for of in (np.mean, np.var))
        out = (total - mean) / np.sqrt(variance + epsilon) * gamma + beta
        return out.astype(x.dtype), np.empty(0), np.empty(0), total.astype(x.dtype)


class BiasSplitGelu(OpRun):
    """com.microsoft.BiasSplitGelu: the left half of x + bias times the GELU of the right one."""

    op_domain = DOMAIN

    def _run(self, x, bias):  # type: ignore[no-untyped-def]
        assert x.ndim == 3 and x.shape[2] in (2560, 5120, 10240)
        left, right = np.split(x.astype(np.float64) + bias, 2, axis=-1)
        gelu = right / 2 * (1 + np.vectorize(math.erf)(right / math.sqrt(2)))
        return ((left * gelu).astype(x.dtype),)


def model(
    element: int,
    channels: int = 12,
    rank: int = 4,
    silu: str = "whole",
    opset: int = 23,
    height: int | str = 4,
    weights: int = 0,
) -> Any:
    """x -> GroupNormalization -> y -> SiLU -> z; `silu` "read" also gives y out, and "none" ends there."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    shape = ["rows", channels, height, 3][:rank]
    values = np.random.default_rng(0).normal(size=(2, weights or channels)).astype(dtype)
    tensors = [numpy_helper.from_array(values[i], name) for i, name in enumerate("wb")]
    nodes = [helper.make_node("GroupNormalization", ["x", "w", "b"], ["y"], "norm", num_groups=2, epsilon=1e-3)]
    if silu != "none":
        nodes += [helper.make_node("Sigmoid", ["y"], ["s"]), helper.make_node("Mul", ["s", "y"], ["z"])]
    outs = {"whole": "z", "read": "zy", "none": "y"}[silu]
    inputs, outputs = ([helper.make_tensor_value_info(name, element, shape) for name in names] for names in ("x", outs))
    graph = helper.make_graph(nodes, "norm", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def results(graph: Any, x: np.ndarray) -> list[np.ndarray]:
    return ReferenceEvaluator(graph, new_ops=[GroupNorm, SkipLayerNormalization, BiasSplitGelu]).run(None, {"x": x})


@pytest.mark.parametrize("silu", ["whole", "read", "none"])
@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_group_norm_computes_what_the_graph_did(element: int, silu: str) -> None:
    plain, changed = model(element, silu=silu), model(element, silu=silu)
    fit_to_cuda(changed)
    onnx.checker.check_model(changed)
    ops = Counter(node.op_type for node in changed.graph.node)
    assert ops["GroupNorm"] == 1 and ops["GroupNormalization"] == 0 and ops["Transpose"] == 2
    assert ops["Sigmoid"] == (1 if silu == "read" else 0)
    x = np.random.default_rng(1).normal(size=(2, 12, 4, 3)).astype(helper.tensor_dtype_to_np_dtype(element))
    close(results(changed, x), plain, x)


@pytest.mark.parametrize("case", [{"channels": 6}, {"channels": 1028}, {"rank": 3}], ids=["odd", "wide", "tokens"])
@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_a_norm_that_the_kernel_does_not_compute_becomes_a_few_nodes(element: int, case: dict[str, int]) -> None:
    plain, changed = model(element, **case), model(element, **case)
    fit_to_cuda(changed)
    onnx.checker.check_model(changed)
    ops = ops_of(changed)
    assert "GroupNormalization" not in ops and ops["GroupNorm"] == ("rank" in case)
    x = np.random.default_rng(1).normal(size=shape_of(plain, "x")).astype(helper.tensor_dtype_to_np_dtype(element))
    close(results(changed, x), plain, x)


@pytest.mark.parametrize(
    "given",
    [
        model(TensorProto.BFLOAT16),
        model(TensorProto.FLOAT, opset=18),
        model(TensorProto.FLOAT, channels=6, height="height"),
        model(TensorProto.FLOAT, weights=1),
    ],
    ids=["bfloat16", "another meaning", "odd groups of a free size", "one weight for all channels"],
)
def test_a_norm_that_nothing_else_computes_stays(given: Any) -> None:
    before = given.SerializeToString()
    fit_to_cuda(given)
    assert given.SerializeToString() == before


def graph_of(nodes: list[NodeProto], shape: list[Any], outputs: str, **weights: np.ndarray) -> onnx.ModelProto:
    """x [shape] -> the letters of `outputs`, float32, with the shapes that onnx infers."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "net", inputs, made, tensors)
    opsets = [helper.make_opsetid("", 23)]
    return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def ops_of(graph: onnx.ModelProto) -> Counter[str]:
    return Counter(one.op_type for one in graph.graph.node)


def shape_of(graph: onnx.ModelProto, name: str) -> tuple[int, ...]:
    """The sizes of a graph's input, 2 where they are free."""
    (kind,) = (one.type.tensor_type for one in graph.graph.input if one.name == name)
    return tuple(one.dim_value or 2 for one in kind.shape.dim)


def close(found: list[np.ndarray], plain: onnx.ModelProto, x: np.ndarray) -> None:
    for one, expected in zip(found, results(plain, x), strict=True):
        assert one.dtype == expected.dtype and one.shape == expected.shape
        scale = max(1, np.abs(expected).max())  # sums of at most a hundred products, and a handful of roundings
        within = 32 * scale * float(np.finfo(x.dtype).eps)
        np.testing.assert_allclose(one.astype(float), expected.astype(float), rtol=0, atol=within)


def rewritten(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as CUDA reads it, once it computed the same; on onnxruntime's CPU too where that has the operators."""
    changed = onnx.ModelProto.FromString(graph.SerializeToString())
    fit_to_cuda(changed)
    onnx.checker.check_model(changed)
    x = np.random.default_rng(0).normal(size=shape_of(graph, "x")).astype(np.float32)
    close(results(changed, x), graph, x)
    if "BiasSplitGelu" not in ops_of(changed):
        session = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
        close(session.run(None, {"x": x}), graph, x)
    return changed


def branch(name: str) -> onnx.GraphProto:
    """An inner graph that returns a value of the outer one."""
    out = helper.make_tensor_value_info(f"{name}2", TensorProto.FLOAT, None)
    return helper.make_graph([node("Identity", [name], [f"{name}2"])], name, [], [out])


def test_what_an_inner_graph_reads_stays() -> None:
    given = model(TensorProto.FLOAT)
    given.graph.node.append(node("If", ["c"], ["o"], then_branch=branch("y"), else_branch=branch("s")))
    given.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    given.graph.output.append(helper.make_tensor_value_info("o", TensorProto.FLOAT, None))
    changed = onnx.ModelProto.FromString(given.SerializeToString())
    fit_to_cuda(changed)
    x = np.random.default_rng(1).normal(size=(2, 12, 4, 3)).astype(np.float32)
    close(results(changed, x), given, x)


def test_norms_without_names_and_values_of_like_names_stay_apart() -> None:
    """Odd groups, which onnxruntime's CPU computes; a value is called as the rewriting would call its own."""
    weights = {f"{name}{n}": np.linspace(0, 1, n, dtype=np.float32) for n in (6, 18) for name in "wb"}
    nodes = [
        node("GroupNormalization", ["x", "w6", "b6"], ["y"], num_groups=2),
        node("Concat", ["y", "x", "x"], ["y_rows"], axis=1),
        node("GroupNormalization", ["y_rows", "w18", "b18"], ["z"], num_groups=2),
        *(node("Resize", [name, "", "s"], [f"{name}2"], mode="nearest") for name in "yz"),
        node("Concat", ["y2", "z2"], ["o"], axis=1),
    ]
    given = graph_of(nodes, [2, 6, 4, 3], "o", s=np.array([1, 1, 2, 2], np.float32), **weights)
    for name, channels in (("y", 6), ("y_rows", 18), ("z", 18)):  # onnx infers no shape of a norm
        shape = [2, channels, 4, 3]
        given.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    given = onnx.shape_inference.infer_shapes(given)
    assert ops_of(rewritten(given))["LayerNormalization"] == 2


def test_operators_of_other_domains_stay() -> None:
    given = model(TensorProto.FLOAT)
    given.opset_import.append(helper.make_opsetid("other", 1))
    for one in given.graph.node:
        one.domain = "other"
    before = given.SerializeToString()
    fit_to_cuda(given)
    assert given.SerializeToString() == before


def without_sizes(graph: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    for value in (*graph.graph.value_info, *graph.graph.output):
        for size in value.type.tensor_type.shape.dim if value.name in names else ():
            size.Clear()
    return graph


def attention(split: list[int], merge: list[int], perm: tuple[int, ...] = (0, 2, 1, 3), out: str = "y") -> Any:
    """Self-attention of x [rows, 6, 8] with 2 heads, reshaped to `split` and back to `merge`."""
    heads = [
        made
        for name in "qkv"
        for made in (node("Reshape", ["x", "s"], [f"{name}4"]), node("Transpose", [f"{name}4"], [name], perm=perm))
    ]
    back = [node("Transpose", ["a"], ["t"], perm=perm), node("Reshape", ["t", "m"], ["y"])]
    nodes = [*heads, node("Attention", ["q", "k", "v"], ["a"], scale=0.3), *back]
    return graph_of(nodes, ["rows", 6, 8], out, s=np.array(split), m=np.array(merge))


def test_attention_takes_tokens() -> None:
    changed = rewritten(attention([0, 6, 2, 4], [0, 6, 8]))
    assert ops_of(changed) == {"Attention": 1}
    assert {one.name: helper.get_attribute_value(one) for one in changed.graph.node[0].attribute} == {
        "q_num_heads": 2,
        "kv_num_heads": 2,
        "scale": pytest.approx(0.3),
    }


@pytest.mark.parametrize(
    "given",
    [
        attention([0, 3, 4, 4], [0, 6, 8]),
        attention([0, 6, 2, 4], [0, 12, 4]),
        attention([0, 2, 6, 4], [0, 6, 8], perm=(0, 1, 2, 3)),
        attention([0, 6, 2, 4], [0, 6, 8], out="ya"),
        without_sizes(attention([0, 6, 2, 4], [0, 12, 4]), "t", "y"),
    ],
    ids=["other tokens", "another merge", "no transpose", "heads are read", "an unknown merge"],
)
def test_attention_of_other_heads_stays(given: Any) -> None:
    assert ops_of(rewritten(given)) == ops_of(given)


def resize(scales: list[float], **attributes: str) -> Any:
    rounding = {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric", **attributes}
    nodes = [node("Resize", ["x", "", "s"], ["y"], **rounding)]
    return graph_of(nodes, ["rows", 3, 4, 5], "y", s=np.array(scales, np.float32))


def test_resize_is_channels_last() -> None:
    ops = [one.op_type for one in rewritten(resize([1, 1, 2, 3])).graph.node]
    assert ops == ["Transpose", "Resize", "Transpose"]


@pytest.mark.parametrize(
    "given", [resize([1, 2, 2, 2]), resize([1, 1, 2, 2], mode="linear")], ids=["channels", "linear"]
)
def test_another_resize_stays(given: Any) -> None:
    assert ops_of(rewritten(given)) == {"Resize": 1}


def normed(skip: str, axis: int = -1) -> Any:
    """s = x + the other, which is the output, read by the norm n, and once more for y."""
    weights = {name: np.random.default_rng(i).normal(size=8).astype(np.float32) for i, name in enumerate("wbv")}
    nodes = [
        node("Sigmoid", ["x"], ["x2"]),
        node("Add", ["x", skip], ["s"]),
        node("Neg", ["s"], ["y"]),
        node("LayerNormalization", ["s", "w", "b"], ["n"], axis=axis, epsilon=1e-3),
    ]
    return graph_of(nodes, ["rows", 6, 8], "sny", **weights)


def test_a_sum_is_computed_with_the_norm_behind_it() -> None:
    assert ops_of(rewritten(normed("x2"))) == {"Sigmoid": 1, "SkipLayerNormalization": 1, "Neg": 1}


def test_a_bias_is_no_sum_of_equal_shapes() -> None:
    assert ops_of(rewritten(normed("v")))["Add"] == 1


def gated(
    width: int = 2560, approximate: str = "none", out: str = "y", bias: int | None = None, left: int | None = None
) -> Any:
    """`bias` is the length of the bias, and `left` of the first part."""
    left = left or width // 2
    nodes = [
        node("Add", ["b", "x"], ["s"]),
        node("Split", ["s", "parts"], ["l", "r"], axis=2),
        node("Gelu", ["r"], ["g"], approximate=approximate),
        node("Mul", ["l", "g"], ["y"]),
    ]
    values = np.random.default_rng(1).normal(size=bias or width).astype(np.float32)
    return graph_of(nodes, ["rows", 3, width], out, b=values, parts=np.array([left, width - left]))


def test_geglu_is_one_node() -> None:
    assert ops_of(rewritten(gated())) == {"BiasSplitGelu": 1}


@pytest.mark.parametrize(
    "given",
    [gated(width=96), gated(approximate="tanh"), gated(out="yl"), gated(bias=1), gated(left=1)],
    ids=["width", "tanh", "half is read", "one bias for all", "parts of other widths"],
)
def test_another_geglu_stays(given: Any) -> None:
    assert ops_of(rewritten(given)) == ops_of(given)


@pytest.mark.parametrize("part", ["unet", "vae_decoder"])
def test_an_exported_network_computes_the_same_in_fewer_nodes(tiny_engine: Path, part: str) -> None:
    path = tiny_engine / part / "model.onnx"
    changed = onnx.ModelProto.FromString(read_for_cuda(path))
    before, after = ops_of(onnx.load(str(path), load_external_data=False)), ops_of(changed)
    assert before["GroupNormalization"] > 10 and "GroupNormalization" not in after
    assert after["Attention"] == before["Attention"] > 0
    onnx.external_data_helper.load_external_data_for_model(changed, str(path.parent))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {
        one.name: np.array([17])
        if one.name == "timestep"
        else random.normal(size=[2, *one.shape[1:]]).astype(np.float32)
        for one in session.get_inputs()
    }
    evaluator = ReferenceEvaluator(changed, new_ops=[GroupNorm, SkipLayerNormalization, BiasSplitGelu])
    np.testing.assert_allclose(evaluator.run(None, feeds)[0], session.run(None, feeds)[0], **near(tiny_engine, part))


def test_a_graph_on_the_cpu_is_placed_there_and_a_gpu_may_have_only_shapes_there(tiny_engine: Path) -> None:
    path = tiny_engine / "unet" / "model.onnx"
    placed = placement(Network.open(path, place("cpu", "fp32", Path("unused")), threads=1).session)
    assert list(placed) == ["CPUExecutionProvider"]
    assert placed["CPUExecutionProvider"]["Conv"] > 10
    with pytest.raises(DiveError, match=rf"unet/model.onnx: .* {placed['CPUExecutionProvider']['Conv']} Conv"):
        refuse_cpu_work(path, placed)
    refuse_cpu_work(
        path, {"CUDAExecutionProvider": Counter(Conv=3), "CPUExecutionProvider": Counter(Shape=2, Gather=1)}
    )
