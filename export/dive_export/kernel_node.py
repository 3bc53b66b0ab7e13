"""The UNet with a K/V cache and each cross-attention as one ONNX node, `dive::cross_attention`; the node in standard ops.

The node reads the keys and values of a row's prompt from the cache without a copy per row, as the kernel of that name in
`dive_kernels` does. Runtimes without the node run its body, a model-local function; `trt_plugin` gives TensorRT the kernel.

    dive::cross_attention(query [R, T, C], kv_bank [P, 2, L, sumC], prompt_index int64 [R]) -> [R, T, C]
        heads: int      start, stop: ints [1], the layer's columns of the cache, stop - start = C
"""

from __future__ import annotations

from typing import Any

import torch
from onnx.parser import parse_function
from torch import Tensor

from dive_fast.unet.graphs import CachedUnetGraph, KVCache, cross_attentions
from dive_kernels.cross_attention import cross_attention

DOMAIN, NAME, VERSION = "dive", "cross_attention", 1
# The node in standard ops; opset 23 is the first with Attention. Slicing first copies the columns once per prompt; gathering
# first would copy the whole cache once per row and layer. TensorRT resolves a body's names in the graph, where none of
# these may occur.
BODY = f"""
<domain: "{DOMAIN}", opset_import: ["": 23]>
{NAME} <heads, start, stop> (dive_query, dive_kv_bank, dive_prompt_index) => (dive_attended) {{
    dive_start = Constant <value_ints: ints = @start> ()
    dive_stop = Constant <value_ints: ints = @stop> ()
    dive_axis = Constant <value_ints = [3]> ()
    dive_first = Constant <value_int = 0> ()
    dive_second = Constant <value_int = 1> ()
    dive_columns = Slice (dive_kv_bank, dive_start, dive_stop, dive_axis)
    dive_rows = Gather <axis = 0> (dive_columns, dive_prompt_index)
    dive_key = Gather <axis = 1> (dive_rows, dive_first)
    dive_value = Gather <axis = 1> (dive_rows, dive_second)
    dive_attended = Attention <q_num_heads: int = @heads, kv_num_heads: int = @heads> (dive_query, dive_key, dive_value)
}}
"""


class NodeUnetGraph(CachedUnetGraph):
    """`CachedUnetGraph` whose cross-attentions read the cache themselves."""

    gathers = False

    def __init__(self, unet: Any, removed: tuple[str, ...], timesteps: int) -> None:
        super().__init__(unet, removed, timesteps)
        for _, layer in cross_attentions(self.unet):
            layer.set_processor(NodeProcessor(layer.processor.start, layer.processor.stop))


class NodeProcessor:
    """Cross-attention to columns start to stop of the cache: the node during ONNX export, else the op in torch."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: KVCache, attention_mask: None = None
    ) -> Tensor:
        query, kv_bank, prompt_index = attn.to_q(hidden_states), *encoder_hidden_states[:2]
        if torch.onnx.is_in_onnx_export():
            out = torch.onnx.ops.symbolic(
                f"{DOMAIN}::{NAME}",
                (query, kv_bank, prompt_index),
                {"heads": attn.heads, "start": [self.start], "stop": [self.stop]},
                dtype=query.dtype,
                shape=query.shape,
                version=VERSION,
            )
        else:
            key, value = kv_bank[..., self.start : self.stop].unbind(1)
            out = cross_attention(query, key, value, prompt_index, attn.heads)
        out = attn.to_out[0](out)
        return out / attn.rescale_output_factor


def kernel_nodes(graph: Any) -> list[Any]:
    """The nodes of an `onnx.GraphProto` that are the kernel's, in order."""
    return [node for node in graph.node if (node.domain, node.op_type) == (DOMAIN, NAME)]


def attributes(node: Any) -> dict[str, int]:
    """heads, start and stop of one of `kernel_nodes`."""
    return {attribute.name: attribute.i or next(iter(attribute.ints), 0) for attribute in node.attribute}


def define(model: Any) -> None:
    """Adds the node's body to an `onnx.ModelProto` that has such nodes and no body yet."""
    if kernel_nodes(model.graph) and not any((f.domain, f.name) == (DOMAIN, NAME) for f in model.functions):
        model.functions.append(parse_function(BODY))
