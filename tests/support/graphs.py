"""ONNX graphs written and changed on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def save(model: onnx.ModelProto, path: Path, threshold: int = 1024) -> Path:
    """Writes a model, tensors of `threshold` bytes and more beside it, whatever was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # onnx would append to it
    onnx.save(model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=threshold)
    return path


def write_graph(
    path: Path, nodes: Sequence[onnx.NodeProto], weights: Mapping[str, np.ndarray], x: str, shape: Sequence[Any], y: str
) -> Path:
    """A graph x [rows, *shape] -> y in the type of its weights, float32 without any."""
    dtype = next(iter(weights.values())).dtype if weights else np.dtype(np.float32)
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(x, kind, ["rows", *shape])],
        [onnx.ValueInfoProto(name=y, type=helper.make_tensor_type_proto(kind, None))],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return save(onnx.shape_inference.infer_shapes(model), path, threshold=0)


def reweigh(path: Path, chosen: Callable[[Any], bool], change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Changes the chosen initializers of a graph on disk, in their own type."""
    model = onnx.load(path)
    for tensor in filter(chosen, model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), tensor.name))
    save(model, path)


def named(ending: str) -> Callable[[Any], bool]:
    """Chooses the initializers whose names end so."""
    return lambda tensor: bool(tensor.name.endswith(ending))


def dimensions(value: Any) -> list[str | int]:
    """Sizes of a graph's value, names for free ones."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
