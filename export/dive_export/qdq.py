"""Graph surgery for FP8 and int8: QuantizeLinear and DequantizeLinear around the inputs of convolutions and matrix products.

e4m3 ("FN": no infinities, largest value 448, 3 fraction bits) as in Micikevicius et al., arXiv 2209.05433. A quantised layer
reads DequantizeLinear(QuantizeLinear(x)) with one scale per tensor, and e4m3 weights with one scale per output channel. A
compiler that knows the pattern computes in FP8; others compute the same numbers in the graph's type. int8 is the same with
whole numbers to 127: of one spacing, where that of e4m3 grows with the value.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model
from onnx.helper import make_node, make_tensor, make_tensor_value_info, tensor_dtype_to_np_dtype
from onnx.numpy_helper import to_array

from dive_fast.engines.node_runner import load_tensors, scopes, short
from dive_fast.io import brief
from dive_fast.types import InputError

FLOATS = (1, 10)  # TensorProto.FLOAT, FLOAT16
SWITCHES = "quantised"  # the extra input of a switched graph: bool [layers]


@dataclass(frozen=True)
class Number:
    """What layers are quantised to: its largest value, its type in ONNX and in numpy."""

    largest: float
    element: int
    dtype: Any


NUMBERS = {
    "fp8": Number(448.0, TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    "int8": Number(127.0, TensorProto.INT8, np.int8),
}


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights. `axis` is that of the output channels in `weight`."""

    name: str
    node: str
    op: str
    activation: str
    weight: str
    axis: int


def find_layers(graph: Any) -> list[Layer]:
    """Lists every Conv, MatMul and Gemm of an `onnx.GraphProto` whose second input is a constant of floats.

    The name is the torch module's, with the node's if that is empty or not unique.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in FLOATS}
    found = []
    for node, scope in zip(graph.node, scopes(graph), strict=True):
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in constants:
            continue
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else len(constants[node.input[1]].dims) - 1
        found.append(Layer(short(scope), node.name, node.op_type, node.input[0], node.input[1], axis))
    names = [layer.name for layer in found]
    return [
        layer if layer.name and names.count(layer.name) == 1 else replace(layer, name=f"{layer.name}#{layer.node}")
        for layer in found
    ]


def scale_for(largest: np.ndarray | float, dtype: np.dtype, number: Number) -> np.ndarray:
    """Returns the scales that map `largest` to `number`'s largest value, in `dtype`, rounded up; 1 where it is 0."""
    exact = np.asarray(largest, np.float64) / number.largest
    scale = exact.astype(dtype)
    scale = np.where(scale < exact, np.nextafter(scale, dtype.type(np.inf)), scale)
    return np.where(exact == 0, dtype.type(1), scale).astype(dtype)


def quantised_weight(weight: np.ndarray, axis: int, number: Number) -> tuple[np.ndarray, np.ndarray]:
    """Returns (values of `number` in the weight's shape, scales [channels] of its type), a scale per output channel."""
    rest = tuple(i for i in range(weight.ndim) if i != axis)
    scales = scale_for(np.abs(weight).max(axis=rest), weight.dtype, number)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    ratio = weight.astype(np.float32) / scales.astype(np.float32).reshape(shape)
    whole = np.rint(ratio) if number.element == TensorProto.INT8 else ratio  # numpy would cut fractions off
    return np.clip(whole, -number.largest, number.largest).astype(number.dtype), scales


def insert(
    model: Any,
    path: Path,
    layers: Sequence[Layer],
    largest: Mapping[str, float],
    *,
    to: str = "fp8",
    switched: bool = False,
) -> Any:
    """Copies `model` with `layers` quantised `to` one of `NUMBERS`; `largest` maps an activation's name to the value that
    becomes the number's largest.

    External weights of `layers` are read from beside `path`. They are quantised; the old ones are dropped if nothing else
    reads them. With `switched`, the extra input `quantised` bool [len(layers)] selects the quantised layers, so one session
    measures every choice.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    types = {layer.weight: weights[layer.weight].data_type for layer in layers}
    work = _Insertion(graph, path, weights, NUMBERS[to], switched)
    by_node = {layer.node: (i, layer) for i, layer in enumerate(layers)}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.name in by_node:
            i, layer = by_node[node.name]
            node.input[0] = work.activation(i, layer, largest[layer.activation], types[layer.weight])
            node.input[1] = work.weight(i, layer)
        graph.node.append(node)
    if switched:
        graph.input.append(make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(layers)]))
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return result


class _Insertion:
    """Adds the nodes and constants of `insert` to `graph`, each once."""

    def __init__(self, graph: Any, path: Path, weights: Mapping[str, Any], number: Number, switched: bool) -> None:
        self.graph, self.path, self.weights, self.number, self.switched = graph, path, weights, number, switched
        self.made: set[str] = set()

    def activation(self, index: int, layer: Layer, largest: float, data_type: int) -> str:
        name = layer.activation
        quantised, result = f"{name}_narrow", f"{name}_dequantised"
        if self._new(result):  # layers that read the same tensor share it: queries, keys and values, log
            value = scale_for(largest, np.dtype(tensor_dtype_to_np_dtype(data_type)), self.number)
            constants = [f"{name}_scale", f"{name}_zero"]
            self._constant(constants[0], data_type, (), value.tobytes())
            self._constant(constants[1], self.number.element, (), b"\0")
            self._node("QuantizeLinear", [name, *constants], quantised)
            self._node("DequantizeLinear", [quantised, *constants], result)
        return self._choice(index, result, name)

    def weight(self, index: int, layer: Layer) -> str:
        name = layer.weight
        result = f"{name}_{layer.axis}_dequantised"
        if self._new(result):
            tensor = self.weights[name]
            exact = to_array(load_tensors(self.weights, {name}, self.path)[name])
            values, scales = quantised_weight(exact, layer.axis, self.number)
            constants = [f"{result}_narrow", f"{result}_scale"]
            self._constant(constants[0], self.number.element, tensor.dims, values.tobytes())
            self._constant(constants[1], tensor.data_type, scales.shape, scales.tobytes())
            self._node("DequantizeLinear", constants, result, axis=layer.axis)
        return self._choice(index, result, name)

    def _choice(self, index: int, quantised: str, plain: str) -> str:
        """Returns `quantised`; in a switched graph a choice between it and `plain` by switch `index`."""
        if not self.switched:
            return quantised
        switch = f"{SWITCHES}_{index}"
        if self._new(switch):
            position = make_tensor(f"{switch}_index", TensorProto.INT64, [], [index])
            self.graph.initializer.append(position)
            self._node("Gather", [SWITCHES, position.name], switch)
        result = f"{quantised}_or_not_{index}"
        if self._new(result):
            self._node("Where", [switch, quantised, plain], result)
        return result

    def _constant(self, name: str, data_type: int, dims: Sequence[int], data: bytes) -> None:
        self.graph.initializer.append(make_tensor(name, data_type, dims, data, raw=True))

    def _new(self, name: str) -> bool:
        fresh = name not in self.made
        self.made.add(name)
        return fresh

    def _node(self, op: str, inputs: Sequence[str], output: str, **attributes: int) -> None:
        self.graph.node.append(make_node(op, inputs, [output], name=f"node_{output}", **attributes))


def save(model: Any, source: Path, path: Path) -> None:
    """Writes `model`, with the external weights of `source`, as `path` (last) and `<name>.data` beside it.

    `model` is used up. The graph names the weights' file, which must not be renamed. Raises `InputError` if the weights of
    `source` are missing or cut off.
    """
    try:
        load_external_data_for_model(model, str(source.parent))
    except Exception as error:  # onnx's ValidationError, ValueError or OSError: the file is not as recorded
        raise InputError(f"{source}: its weights cannot be read ({brief(error)}); export it again") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    with contextlib.suppress(FileNotFoundError):  # small weights stay inside the graph
        path.with_name(f"{path.name}.data").chmod(0o644)  # onnx writes it readable by its owner only
