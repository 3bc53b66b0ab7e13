"""Graphs for onnxruntime's CUDA provider, held to plain ones by onnx's reference; where onnxruntime placed their nodes.

No CUDA provider runs here: `GroupNorm` below computes what onnxruntime documents of its operator.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from dive_fast.engines.onnx_cuda import DOMAIN, read_for_cuda, use_group_norm
from dive_fast.engines.onnx_session import Network, place, placement, refuse_cpu_work
from dive_fast.types import DiveError


class GroupNorm(OpRun):
    """com.microsoft.GroupNorm: x [N, H, W, C] of any float type, gamma and beta float32 [C]."""

    op_domain = DOMAIN

    def _run(self, x, gamma, beta, activation, channels_last, epsilon, groups):  # type: ignore[no-untyped-def]
        assert channels_last == 1 and x.ndim == 4 and gamma.dtype == beta.dtype == np.float32
        grouped = x.astype(np.float64).reshape(*x.shape[:3], groups, -1)
        mean, variance = (of(grouped, axis=(1, 2, 4), keepdims=True) for of in (np.mean, np.var))
        out = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta
        return ((out / (1 + np.exp(-out)) if activation else out).astype(x.dtype),)


def model(
    element: int, channels: int = 12, groups: int = 2, rank: int = 4, silu: str = "whole", opset: int = 23
) -> Any:
    """x -> GroupNormalization -> y -> SiLU -> z; `silu` "read" also gives y out, and "none" ends there."""
    dtype = helper.tensor_dtype_to_np_dtype(element)
    shape = ["rows", channels, 4, 3][:rank]
    values = np.random.default_rng(0).normal(size=(2, channels)).astype(dtype)
    weights = [numpy_helper.from_array(values[i], name) for i, name in enumerate("wb")]
    nodes = [helper.make_node("GroupNormalization", ["x", "w", "b"], ["y"], "norm", num_groups=groups, epsilon=1e-3)]
    if silu != "none":
        nodes += [helper.make_node("Sigmoid", ["y"], ["s"]), helper.make_node("Mul", ["s", "y"], ["z"])]
    outs = {"whole": "z", "read": "zy", "none": "y"}[silu]
    inputs, outputs = ([helper.make_tensor_value_info(name, element, shape) for name in names] for names in ("x", outs))
    graph = helper.make_graph(nodes, "norm", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def results(graph: Any, x: np.ndarray) -> list[np.ndarray]:
    return ReferenceEvaluator(graph, new_ops=[GroupNorm]).run(None, {"x": x})


@pytest.mark.parametrize("silu", ["whole", "read", "none"])
@pytest.mark.parametrize("element", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_group_norm_computes_what_the_graph_did(element: int, silu: str) -> None:
    plain, changed = model(element, silu=silu), model(element, silu=silu)
    assert use_group_norm(changed) == 1
    onnx.checker.check_model(changed)
    ops = Counter(node.op_type for node in changed.graph.node)
    assert ops["GroupNorm"] == 1 and ops["GroupNormalization"] == 0 and ops["Transpose"] == 2
    assert ops["Sigmoid"] == (1 if silu == "read" else 0)
    x = np.random.default_rng(1).normal(size=(2, 12, 4, 3)).astype(helper.tensor_dtype_to_np_dtype(element))
    step = float(np.finfo(x.dtype).eps)
    for found, expected in zip(results(changed, x), results(plain, x), strict=True):
        assert found.dtype == expected.dtype  # a handful of roundings of numbers up to 4
        np.testing.assert_allclose(found.astype(float), expected.astype(float), rtol=0, atol=32 * step)


@pytest.mark.parametrize(
    "given",
    [
        model(TensorProto.BFLOAT16),
        model(TensorProto.FLOAT, rank=3),
        model(TensorProto.FLOAT, channels=6),
        model(TensorProto.FLOAT, channels=1028),
        model(TensorProto.FLOAT, opset=18),
    ],
    ids=["bfloat16", "tokens", "odd groups", "groups too wide", "another meaning"],
)
def test_what_the_kernel_does_not_compute_stays(given: Any) -> None:
    before = given.SerializeToString()
    assert use_group_norm(given) == 0 and given.SerializeToString() == before


def test_an_exported_unet_has_no_inlined_norm(tiny_engine: Path) -> None:
    """Every norm is three nodes, and every other operator is as it was."""
    path = tiny_engine / "unet" / "model.onnx"
    before, after = (
        Counter(node.op_type for node in graph.graph.node)
        for graph in (onnx.load(str(path), load_external_data=False), onnx.load_model_from_string(read_for_cuda(path)))
    )
    norms, silu = before.pop("GroupNormalization"), before["Sigmoid"]
    assert norms > 10 and after.pop("GroupNorm") == norms and "GroupNormalization" not in after
    gained = Counter({"Transpose": 2 * norms})
    assert after == before + gained - Counter({"Sigmoid": silu, "Mul": silu})


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
