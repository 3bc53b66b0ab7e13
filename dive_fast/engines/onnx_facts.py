"""What a rewriting of an ONNX graph has to know: types and shapes by name, who makes and who reads a value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Sizes = list["int | str"]  # free ones by name


class Facts:
    """The facts of a graph as it was given, and what replacements add (`constants`) and make needless (`dropped`)."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.kinds = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
        self.initializers = {one.name: one for one in graph.initializer}
        self.outputs = {value.name for value in graph.output} | set(_read_inside(graph))
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        self.constants: dict[str, TensorProto] = {}
        self.dropped: set[int] = set()  # ids of nodes whose outputs a replacement makes
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def maker(self, name: str, op: str, **attributes: Any) -> NodeProto | None:
        """Returns the node that makes a value if it is an `op` with these attributes."""
        node = self.makers.get(name)
        return node if node is not None and _is(node, op, attributes) else None

    def only_reader(self, name: str, op: str, **attributes: Any) -> NodeProto | None:
        """Returns the node that alone reads a value, no output of the graph, if it is an `op` with these attributes."""
        readers = self.readers[name]
        alone = len(readers) == 1 and name not in self.outputs
        return readers[0] if alone and _is(readers[0], op, attributes) else None

    def type_of(self, name: str) -> int:
        """Returns the type of a value's elements (`TensorProto.DataType`), 0 if it is not known."""
        return self.kinds[name].elem_type if name in self.kinds else 0

    def sizes(self, name: str) -> Sizes:
        """Returns the shape of a value, empty if one of its sizes is not known, not even by name."""
        found = [one.dim_value or one.dim_param for one in self.kinds[name].shape.dim] if name in self.kinds else []
        return found if all(found) else []

    def vector(self, name: str, length: int | str) -> TensorProto | None:
        """Returns the weight `name` if it is a vector of that length."""
        found = self.initializers.get(name)
        return found if found is not None and [*found.dims] == [length] else None

    def constant(self, name: str, value: Any) -> str:
        """Adds `value` to the graph's constants; returns `name`."""
        self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name


def _is(node: NodeProto, op: str, attributes: dict[str, Any]) -> bool:
    return op_of(node) == op and all(attribute(node, name) == value for name, value in attributes.items())


def _read_inside(graph: onnx.GraphProto) -> Iterator[str]:
    """Yields what the nodes of inner graphs read, those of If and Loop; some of it is their own."""
    for holder in (one for node in graph.node for one in node.attribute):
        for inner in (holder.g, *holder.graphs):
            yield from (name for node in inner.node for name in node.input)
            yield from _read_inside(inner)


def op_of(node: NodeProto) -> str:
    """Returns the operator's name, with its domain if it is not one of ONNX's own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    found = [helper.get_attribute_value(one) for one in node.attribute if one.name == name]
    return found[0] if found else default


def live(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Returns those of the sorted `nodes` that `outputs` depend on."""
    needed, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if needed & set(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
