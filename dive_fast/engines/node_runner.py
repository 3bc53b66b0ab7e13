"""Runs an ONNX graph in slices of nodes and yields every node's output, for probes inside a network.

A slice is a model of consecutive nodes, fed with the outputs of earlier slices: memory is bounded, and the whole costs one
forward. On a CPU onnxruntime keeps chains of float16 nodes in float32, which hides overflows; there each node is a slice,
and its result is rounded to its type.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, ValueInfoProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from onnx.helper import make_tensor_value_info, np_dtype_to_tensor_dtype, tensor_dtype_to_np_dtype
from onnx.numpy_helper import to_array

from dive_fast.io import brief
from dive_fast.types import DiveError, InputError

CPU = "CPUExecutionProvider"
MEMORY = 1 << 30  # bytes of results and weights that a slice may hold
SLICE_NODES = 64
FLOAT16, BFLOAT16 = 10, 16  # of onnx.TensorProto
SCOPES = "pkg.torch.onnx.name_scopes"  # what torch.onnx.export(dynamo=True) writes into a node's metadata
WRAPPER = re.compile(r"^(?:\w+\.)*?(?:unet|vae|text_encoder)\.")  # dive_export's wrapper modules
ROWS_UNKNOWN = 64  # assumed for a dimension of unknown size


@dataclass(frozen=True)
class NodeRun:
    """One node with its input and output tensors. `weights` are the initializers among its inputs."""

    node: Any  # onnx.NodeProto
    scope: str
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def read_graph(path: Path) -> Any:
    """Reads the `onnx.ModelProto` of `path` without external weights; raises `InputError` if missing or broken."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the model.onnx of an engine's part")
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, which belongs to whichever protobuf is installed
        raise InputError(f"{path} is not an ONNX graph ({brief(error)}); export the engine again") from error


def scopes(graph: Any) -> list[str]:
    """Returns the torch module of each node of an `onnx.GraphProto`, in order; "" if unknown.

    From the metadata of torch's exporter, else from the node name of the older exporter
    (`/down_blocks.0/resnets.0/conv1/Conv`), else from the node that computes the first input.
    """
    made_by: dict[str, str] = {}
    found = []
    for node in graph.node:
        scope = _own_scope(node)
        if scope is None:
            scope = made_by.get(node.input[0], "") if node.input else ""
        made_by.update(dict.fromkeys(node.output, scope))
        found.append(scope)
    return found


def short(scope: str) -> str:
    """Removes the wrapper's name: `unet.conv_in` becomes `conv_in`."""
    return WRAPPER.sub("", scope)


def _own_scope(node: Any) -> str | None:
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            *modules, _operation = ast.literal_eval(entry.value)
            return modules[-1] if modules and not modules[-1].startswith("_") else ""
    if node.name.startswith("/"):
        return ".".join(node.name.strip("/").split("/")[:-1])
    return None


def run_nodes(
    path: Path, inputs: Mapping[str, np.ndarray], provider: str = CPU, memory: int = MEMORY
) -> Iterator[NodeRun]:
    """Runs the graph of `path` and yields its nodes in order; a slice holds about `memory` bytes, at least one node.

    `inputs` maps every graph input to an array; floats are cast to the graph's type. Raises `InputError` for inputs that
    do not fit, a bf16 graph or a broken file, `DiveError` when onnxruntime cannot run a slice or lacks `provider`.
    """
    model = read_graph(path)
    graph = model.graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in graph.input}
    if BFLOAT16 in kinds:
        raise InputError(f"{path} is bf16, which onnxruntime hands out to no array; look into the fp32 or fp16 export")
    live = cast_inputs(graph, inputs, str(path))
    weights = {tensor.name: tensor for tensor in graph.initializer}
    names = scopes(graph)
    reads = [_reads(node) for node in graph.node]
    last_use = {name: i for i, read in enumerate(reads) for name in read}
    most = 1 if FLOAT16 in kinds and provider == CPU else SLICE_NODES
    for start, stop in _cuts(graph, live, weights, reads, memory, most):
        loaded = load_tensors(weights, {name for read in reads[start:stop] for name in read}, path)
        live.update(_run_slice(model, range(start, stop), live, loaded, provider, f"{path}, nodes {start}-{stop - 1}"))
        for i in range(start, stop):
            node = graph.node[i]
            yield NodeRun(
                node,
                names[i],
                {name: live[name] for name in reads[i] if name in live},
                {name: to_array(loaded[name]) for name in reads[i] if name in loaded},
                {name: live[name] for name in node.output if name},
            )
        live = {name: array for name, array in live.items() if last_use.get(name, -1) >= stop}


def cast_inputs(graph: Any, inputs: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Casts `inputs` to the types of an `onnx.GraphProto`; raises `InputError` for wrong names or shapes."""
    constants = {tensor.name for tensor in graph.initializer}  # old files list these as inputs too
    types = {value.name: value.type.tensor_type for value in graph.input if value.name not in constants}
    if set(types) != set(inputs):
        raise InputError(f"{where} takes {', '.join(types)}, got {', '.join(inputs)}; give an array for each")
    for name, kind in types.items():
        wanted = [dimension.dim_value or dimension.dim_param for dimension in kind.shape.dim]
        given = np.shape(inputs[name])
        if len(wanted) != len(given) or any(type(w) is int and w != g for w, g in zip(wanted, given, strict=True)):
            raise InputError(f"{where}: {name} is {wanted}, got an array {list(given)}")
    with np.errstate(over="ignore"):  # callers check the values
        return {
            name: np.asarray(inputs[name]).astype(tensor_dtype_to_np_dtype(t.elem_type)) for name, t in types.items()
        }


def _reads(node: Any) -> list[str]:
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names += [name for inner in graph.node for name in _reads(inner)]
    return list(dict.fromkeys(names))


def _cuts(
    graph: Any,
    live: Mapping[str, np.ndarray],
    weights: Mapping[str, Any],
    reads: list[list[str]],
    memory: int,
    most: int,
) -> Iterator[tuple[int, int]]:
    """Yields (start, stop) of slices of at most `most` nodes, by the graph's value sizes."""
    symbols = {
        dimension.dim_param: size
        for value in graph.input
        if value.name in live
        for dimension, size in zip(value.type.tensor_type.shape.dim, live[value.name].shape, strict=False)
        if dimension.dim_param
    }
    sizes = {value.name: _bytes(value, symbols) for value in [*graph.value_info, *graph.output]}
    start = held = 0
    for i, (node, read) in enumerate(zip(graph.node, reads, strict=True)):
        size = sum(sizes.get(name, 0) for name in node.output)
        size += sum(4 * math.prod(weights[name].dims) for name in read if name in weights)
        if i > start and (held + size > memory or i - start == most):
            yield start, i
            start, held = i, 0
        held += size
    if start < len(graph.node):
        yield start, len(graph.node)


def _bytes(value: Any, symbols: Mapping[str, int]) -> int:
    dimensions = value.type.tensor_type.shape.dim
    return 4 * math.prod(d.dim_value or symbols.get(d.dim_param, ROWS_UNKNOWN) for d in dimensions)


def load_tensors(weights: Mapping[str, Any], names: set[str], path: Path) -> dict[str, Any]:
    """Copies the initializers among `names`, with external bytes from beside `path`; raises `InputError` on failure."""
    loaded = {}
    for name in names & set(weights):
        tensor = type(weights[name])()
        tensor.CopyFrom(weights[name])
        if uses_external_data(tensor):
            try:
                load_external_data_for_tensor(tensor, str(path.parent))
            except Exception as error:  # onnx's ValidationError, ValueError or OSError: the file is not as recorded
                raise InputError(f"{path}: the weights of {name} cannot be read ({brief(error)})") from error
            tensor.data_location = type(tensor).DEFAULT
            del tensor.external_data[:]
        loaded[name] = tensor
    return loaded


def _run_slice(
    model: Any, span: range, live: Mapping[str, np.ndarray], weights: Mapping[str, Any], provider: str, where: str
) -> dict[str, np.ndarray]:
    part = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    nodes = [model.graph.node[i] for i in span]
    made = [name for node in nodes for name in node.output if name]
    needed = [name for name in dict.fromkeys(name for node in nodes for name in _reads(node)) if name in live]
    part.graph.name = "slice"
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(weights.values())
    part.graph.input.extend(
        make_tensor_value_info(name, np_dtype_to_tensor_dtype(live[name].dtype), live[name].shape) for name in needed
    )
    part.graph.output.extend(ValueInfoProto(name=name) for name in made)  # onnxruntime finds their types
    session = plain_session(part.SerializeToString(), provider, where)
    try:
        return dict(zip(made, session.run(made, {name: live[name] for name in needed}), strict=True))
    except Exception as error:  # onnxruntime's own exceptions share no base class but this
        raise DiveError(f"{where} failed in onnxruntime: {brief(error)}") from error


def plain_session(model: bytes | str, provider: str, where: str) -> Any:
    """Opens an onnxruntime session of a model (bytes or path) without optimizations, which would change its numbers.

    Raises `DiveError` naming `where` if it does not run on `provider`.
    """
    import onnxruntime

    offered = onnxruntime.get_available_providers()
    if provider not in offered:
        raise DiveError(f"{where}: this onnxruntime has no {provider}, only {', '.join(offered)}; choose {CPU}")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # each slice would warn of what it does not use
    try:
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime's own exceptions share no base class but this
        raise DiveError(f"{where}: onnxruntime cannot run it on {provider} ({brief(error)})") from error
    if session.get_providers()[0] != provider:
        raise DiveError(f"{where}: onnxruntime did not bring up {provider}; choose {CPU}")
    return session
