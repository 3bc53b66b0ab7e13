"""Graphs as onnxruntime's CUDA provider has kernels for them.

It has none for GroupNormalization, so onnxruntime inlines that operator: some 30 nodes, those of shapes on the CPU. Its
operator `com.microsoft.GroupNorm` computes the same, and SiLU behind it, on channels-last images in float32 or float16.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

DOMAIN = "com.microsoft"
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # the permutations to channels last and back
OPSET = 21  # from which scale and bias of GroupNormalization are those of channels, not of groups
TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
GROUP_MOST = 512  # channels of a group: the kernel sums pairs of channels, a group within one block


def read_for_cuda(path: Path) -> bytes:
    """Returns the graph in `path` with GroupNorm for GroupNormalization where that can be; weights outside stay there."""
    model = onnx.load(str(path), load_external_data=False)
    use_group_norm(model)
    return model.SerializeToString()


def use_group_norm(model: onnx.ModelProto) -> int:
    """Puts GroupNorm into `model` in place, with SiLU where nothing else reads the norm; returns how many it put in."""
    if not any(one.domain == "" and one.version >= OPSET for one in model.opset_import):
        return 0
    graph, found = model.graph, _Graph(model.graph)
    nodes: list[NodeProto] = []
    dropped: set[int] = set()
    count = 0
    for node in graph.node:
        if node.op_type == "GroupNormalization" and found.fits(node):
            silu = found.silu_behind(node)
            dropped |= {id(part) for part in silu}
            nodes += found.replaced(node, silu)
            count += 1
        else:
            nodes.append(node)
    kept = [node for node in nodes if id(node) not in dropped]
    if count:
        del graph.node[:]
        graph.node.extend(kept)
        if not any(one.domain == DOMAIN for one in model.opset_import):
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return count


class _Graph:
    """What the replacement has to know of a graph: types and ranks by name, readers, and outputs."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.kinds = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input)}
        self.vectors = {one.name: one for one in graph.initializer if len(one.dims) == 1}
        self.outputs = {value.name for value in graph.output}
        self.readers: defaultdict[str, list[NodeProto]] = defaultdict(list)
        self.cast: set[str] = set()  # vectors whose float32 copies are in the graph
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)

    def fits(self, node: NodeProto) -> bool:
        kind, scale = self.kinds.get(node.input[0]), self.vectors.get(node.input[1])
        if kind is None or scale is None or node.input[2] not in self.vectors:
            return False
        group = scale.dims[0] // int(_attribute(node, "num_groups", 1))
        return len(kind.shape.dim) == 4 and kind.elem_type in TYPES and group % 2 == 0 and group <= GROUP_MOST

    def silu_behind(self, node: NodeProto) -> list[NodeProto]:
        """Returns the two nodes x -> sigmoid(x) -> x * sigmoid(x) if nothing else reads them, else none."""
        name = node.output[0]
        readers = self.readers[name]
        gates = [reader for reader in readers if reader.op_type == "Sigmoid"]
        if len(readers) != 2 or len(gates) != 1 or name in self.outputs:
            return []
        gate = gates[0].output[0]
        products = self.readers[gate]
        whole = len(products) == 1 and products[0].op_type == "Mul" and set(products[0].input) == {name, gate}
        return [gates[0], products[0]] if whole and gate not in self.outputs else []

    def replaced(self, node: NodeProto, silu: list[NodeProto]) -> Iterator[NodeProto]:
        image, out = node.input[0], silu[1].output[0] if silu else node.output[0]
        vectors = []
        for name in node.input[1:]:
            vectors.append(self._float_name(name))
            if vectors[-1] not in (name, *self.cast):
                self.cast.add(vectors[-1])
                yield helper.make_node("Cast", [name], [vectors[-1]], to=TensorProto.FLOAT)
        yield helper.make_node("Transpose", [image], [f"{out}_in"], f"{node.name}_last", perm=LAST)
        yield helper.make_node(
            "GroupNorm",
            [f"{out}_in", *vectors],
            [f"{out}_out"],
            node.name,
            domain=DOMAIN,
            groups=int(_attribute(node, "num_groups", 1)),
            epsilon=_attribute(node, "epsilon", 1e-5),
            activation=int(bool(silu)),
            channels_last=1,
        )
        yield helper.make_node("Transpose", [f"{out}_out"], [out], f"{node.name}_first", perm=FIRST)

    def _float_name(self, name: str) -> str:
        return name if self.vectors[name].data_type == TensorProto.FLOAT else f"{name}_float32"


def _attribute(node: NodeProto, name: str, default: float) -> float:
    found = [helper.get_attribute_value(one) for one in node.attribute if one.name == name]
    return float(found[0]) if found else default
