"""Graphs as onnxruntime's CUDA provider computes them in few passes, and nothing of them on the CPU.

What onnxruntime does not do by itself (`benchmarks/cuda_placement.py` shows the graph that it runs):

- GroupNormalization has no kernel there. onnxruntime inlines some 30 nodes, and the host waits for their shapes. Its
  operator `com.microsoft.GroupNorm` computes the same, and SiLU behind it, on channels-last images in fp32 and fp16.
- Attention on heads [B, H, S, D] transposes query and result once more, as its fused kernels take tokens [B, S, H * D].
- Resize stays channels first between convolutions that are channels last.
- A sum that a LayerNormalization and others read takes a pass of its own; `SkipLayerNormalization` computes both, and
  onnxruntime puts the bias before it in as well.
- GEGLU takes four passes, bias, split, GELU and product; `BiasSplitGelu` one, for Stable Diffusion's widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from dive_fast.engines.onnx_facts import Facts, Sizes, attribute, live, op_of

DOMAIN = "com.microsoft"
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # the permutations to channels last and back
HEADS = [0, 2, 1, 3]  # [B, S, H, D] to [B, H, S, D], and back
OPSET = 21  # from which scale and bias of GroupNormalization are those of channels, not of groups
TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16)
GATED = (2560, 5120, 10240)  # widths of BiasSplitGelu's kernels: Stable Diffusion's, in every release
GROUP_MOST = 512  # channels of a group: the kernel sums pairs of channels, a group within one block


def read_for_cuda(path: Path) -> bytes:
    """Returns the graph in `path` as `fit_to_cuda` rewrites it; weights outside stay there."""
    model = onnx.load(str(path), load_external_data=False)
    fit_to_cuda(model)
    return model.SerializeToString()


def fit_to_cuda(model: onnx.ModelProto) -> None:
    """Rewrites norms, attentions, sums before a norm and enlargements in place, each where its numbers stay the same."""
    graph, facts = model.graph, Facts(model.graph)
    rewrites = {
        "Attention": attention_of_tokens,
        "Resize": resize_channels_last,
        "Add": sum_and_norm,
        "Split": gated_gelu,
    }
    if any(one.domain == "" and one.version >= OPSET for one in model.opset_import):
        rewrites["GroupNormalization"] = group_norm
    keep: Callable[[Facts, NodeProto], list[NodeProto]] = lambda facts, node: []  # noqa: E731
    nodes = [made for node in graph.node for made in rewrites.get(op_of(node), keep)(facts, node) or [node]]
    nodes = live([node for node in nodes if id(node) not in facts.dropped], facts.outputs)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(facts.constants.values())
    if any(node.domain == DOMAIN for node in nodes) and not any(one.domain == DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def group_norm(facts: Facts, node: NodeProto) -> list[NodeProto]:
    """Returns GroupNorm on an image [B, C, H, W], or on one of tokens [B, C, L], with the SiLU behind it."""
    (image, *weights), sizes = node.input, facts.sizes(node.input[0])
    if facts.type_of(image) not in TYPES or len(sizes) not in (3, 4):
        return []
    channels = sizes[1]
    if isinstance(channels, str) or not all(facts.vector(name, channels) for name in weights):
        return []
    group = channels // attribute(node, "num_groups")
    if group % 2 or group > GROUP_MOST:
        return _norm_of_rows(facts, node)
    silu = _silu_behind(facts, node.output[0])
    facts.dropped |= {id(part) for part in silu}
    out = silu[-1].output[0] if silu else node.output[0]
    if len(sizes) == 4:
        return _group_norm(facts, node, image, out, bool(silu))
    wide, back = (facts.constant(f"{out}:{name}", to) for name, to in _tokens(channels).items())
    return [
        helper.make_node("Reshape", [image, wide], [f"{out}:image"]),
        *_group_norm(facts, node, f"{out}:image", f"{out}:normal", bool(silu)),
        helper.make_node("Reshape", [f"{out}:normal", back], [out]),
    ]


def _tokens(channels: int) -> dict[str, list[int]]:
    return {"wide": [0, channels, -1, 1], "back": [0, channels, -1]}


def _group_norm(facts: Facts, node: NodeProto, image: str, out: str, silu: bool) -> list[NodeProto]:
    casts = [
        helper.make_node("Cast", [name], [f"{out}:{part}"], to=TensorProto.FLOAT)
        for name, part in zip(node.input[1:], ("scale", "bias"), strict=True)
    ]
    norm = helper.make_node(
        "GroupNorm",
        [f"{out}:in", f"{out}:scale", f"{out}:bias"],
        [f"{out}:out"],
        node.name,
        domain=DOMAIN,
        groups=attribute(node, "num_groups"),
        epsilon=attribute(node, "epsilon", 1e-5),
        activation=int(silu),
        channels_last=1,
    )
    return [*casts, *_channels_last(image, norm, out)]


def _silu_behind(facts: Facts, name: str) -> list[NodeProto]:
    """Returns the two nodes x -> sigmoid(x) -> x * sigmoid(x) if nothing else reads them, else none."""
    readers = facts.readers[name]
    gates = [reader for reader in readers if op_of(reader) == "Sigmoid"]
    if len(readers) != 2 or len(gates) != 1 or name in facts.outputs:
        return []
    product = facts.only_reader(gates[0].output[0], "Mul")
    return [gates[0], product] if product is not None and set(product.input) == {name, gates[0].output[0]} else []


def _norm_of_rows(facts: Facts, node: NodeProto) -> list[NodeProto]:
    """Returns the norm of a fixed size as one of rows [B, groups, rest], for groups that GroupNorm's kernel refuses."""
    (image, scale, bias), out, sizes = node.input, node.output[0], facts.sizes(node.input[0])[1:]
    if not all(isinstance(size, int) for size in sizes):
        return []
    groups = attribute(node, "num_groups")
    ones = np.ones(math.prod(sizes) // groups, helper.tensor_dtype_to_np_dtype(facts.type_of(image)))
    values = {"rows": [0, groups, -1], "ones": ones, "whole": [0, *sizes], "axes": [*range(1, len(sizes))]}
    rows, one, whole, axes = (facts.constant(f"{out}:{name}", value) for name, value in values.items())
    make, epsilon = helper.make_node, attribute(node, "epsilon", 1e-5)
    return [
        make("Reshape", [image, rows], [f"{out}:grouped"]),
        make("LayerNormalization", [f"{out}:grouped", one], [f"{out}:normal"], node.name, epsilon=epsilon),
        make("Reshape", [f"{out}:normal", whole], [f"{out}:image"]),
        *(make("Unsqueeze", [name, axes], [f"{out}:{part}"]) for name, part in ((scale, "scale"), (bias, "bias"))),
        make("Mul", [f"{out}:image", f"{out}:scale"], [f"{out}:scaled"]),
        make("Add", [f"{out}:scaled", f"{out}:bias"], [out]),
    ]


def attention_of_tokens(facts: Facts, node: NodeProto) -> list[NodeProto]:
    """Returns Attention on tokens where query, key and value are tokens split into heads, and the result is merged."""
    sources = [_split(facts, name) for name in node.input[:3]]
    transpose = facts.only_reader(node.output[0], "Transpose", perm=HEADS)
    merge = facts.only_reader(transpose.output[0], "Reshape") if transpose else None
    if transpose is None or merge is None or not all(sources) or len(node.input) > 4 or len(node.output) > 1:
        return []
    merged = _merged(facts.sizes(transpose.output[0]))
    if not merged or facts.sizes(merge.output[0]) != merged:
        return []
    heads = {
        name: facts.sizes(made)[1] for name, made in zip(("q_num_heads", "kv_num_heads"), node.input, strict=False)
    }
    tokens = helper.make_node("Attention", [*sources, *node.input[3:]], merge.output, node.name, **heads)
    tokens.attribute.extend(node.attribute)
    facts.dropped |= {id(transpose), id(merge)}
    return [tokens]


def _split(facts: Facts, name: str) -> str:
    """Returns the tokens [B, S, H * D] of which the value `name` is the heads [B, H, S, D], or an empty name."""
    transpose = facts.maker(name, "Transpose", perm=HEADS)
    reshape = facts.maker(transpose.input[0], "Reshape") if transpose else None
    if reshape is None:
        return ""
    merged = _merged(facts.sizes(reshape.output[0]))
    return reshape.input[0] if merged and facts.sizes(reshape.input[0]) == merged else ""


def _merged(sizes: Sizes) -> Sizes:
    """Returns [B, S, H * D] of the shape [B, S, H, D], where H and D are known."""
    match sizes:
        case [batch, length, int(heads), int(width)]:
            return [batch, length, heads * width]
    return []


def resize_channels_last(facts: Facts, node: NodeProto) -> list[NodeProto]:
    """Returns Resize to the nearest pixel between two transposes, which cancel with those of convolutions."""
    scales = facts.vector(node.input[2], 4) if len(node.input) == 3 and not node.input[1] else None
    if scales is None or scales.data_location:
        return []
    by, out = numpy_helper.to_array(scales), node.output[0]
    if attribute(node, "mode", b"nearest") != b"nearest" or attribute(node, "axes") or list(by[:2]) != [1, 1]:
        return []
    last = facts.constant(f"{out}:scales", by[list(LAST)])
    resize = helper.make_node("Resize", [f"{out}:in", "", last], [f"{out}:out"], node.name)
    resize.attribute.extend(node.attribute)
    return _channels_last(node.input[0], resize, out)


def sum_and_norm(facts: Facts, node: NodeProto) -> list[NodeProto]:
    """Returns SkipLayerNormalization for a sum of equal shapes [B, S, C] and the LayerNormalization that reads it."""
    total = node.output[0]
    norms = [one for one in facts.readers[total] if op_of(one) == "LayerNormalization" and one.input[0] == total]
    first, second = (facts.sizes(name) for name in node.input)
    if not norms or first != second or len(first) != 3 or facts.type_of(total) not in TYPES:
        return []
    norm, parts = norms[0], [*norms[0].input[1:]]
    fits = attribute(norm, "axis", -1) in (-1, 2) and len(norm.output) == 1 and len(parts) == 2
    if not fits or not all(facts.vector(name, first[2]) for name in parts):
        return []
    facts.dropped.add(id(norm))
    outputs, epsilon = [norm.output[0], "", "", total], attribute(norm, "epsilon", 1e-5)
    inputs = [*node.input, *parts]
    return [helper.make_node("SkipLayerNormalization", inputs, outputs, norm.name, domain=DOMAIN, epsilon=epsilon)]


def gated_gelu(facts: Facts, node: NodeProto) -> list[NodeProto]:
    """Returns BiasSplitGelu for x + bias, split into a and b of a width that the kernel knows, and a * gelu(b)."""
    total, sizes = node.input[0], facts.sizes(node.input[0])
    if len(sizes) != 3 or sizes[2] not in GATED or facts.type_of(total) not in TYPES:
        return []
    half = [*sizes[:2], int(sizes[2]) // 2]
    if attribute(node, "axis") not in (-1, 2) or [facts.sizes(name) for name in node.output] != [half, half]:
        return []
    terms, gate = _biased(facts, total), _gelu_behind(facts, *node.output)
    if not terms or not gate:
        return []
    facts.dropped |= {id(part) for part in gate}
    return [helper.make_node("BiasSplitGelu", terms, gate[-1].output, node.name, domain=DOMAIN)]


def _biased(facts: Facts, total: str) -> list[str]:
    """Returns the two terms of the value `total` if it is x + bias, of the shape of x [B, S, C], else none."""
    add, sizes = facts.maker(total, "Add"), facts.sizes(total)
    terms = sorted(add.input, key=lambda name: facts.sizes(name) != sizes) if add else []  # x first
    return terms if terms and facts.sizes(terms[0]) == sizes and facts.vector(terms[1], sizes[2]) else []


def _gelu_behind(facts: Facts, left: str, right: str) -> list[NodeProto]:
    """Returns the two nodes right -> gelu(right) -> left * gelu(right) if nothing else reads the halves, else none."""
    gelu, product = facts.only_reader(right, "Gelu"), facts.only_reader(left, "Mul")
    if gelu is None or product is None or facts.only_reader(gelu.output[0], "Mul") is not product:
        return []
    return [gelu, product] if attribute(gelu, "approximate", b"none") == b"none" else []


def _channels_last(image: str, node: NodeProto, out: str) -> list[NodeProto]:
    """Returns `node`, which is on channels-last images, between the transposes of `image` and to `out`."""
    return [
        helper.make_node("Transpose", [image], [node.input[0]], f"{out}:last", perm=LAST),
        node,
        helper.make_node("Transpose", [node.output[0]], [out], f"{out}:first", perm=FIRST),
    ]
