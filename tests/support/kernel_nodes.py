"""The node `dive::cross_attention` alone in a model, and attention as its body computes it."""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from dive_export.kernel_node import DOMAIN, NAME, VERSION, define


def one_node(
    element: int,
    heads: int,
    start: int,
    channels: int,
    width: int,
    tokens: int | str = "tokens",
    keys: int | str = "keys",
) -> Any:
    """A model of a single node and its body; the checker has passed it. q, b, i -> out, names are free sizes."""
    attending = make_node(
        NAME, ["q", "b", "i"], ["out"], domain=DOMAIN, heads=heads, start=[start], stop=[start + channels]
    )
    values = [
        make_tensor_value_info("q", element, ["rows", tokens, channels]),
        make_tensor_value_info("b", element, ["prompts", 2, keys, width]),
        make_tensor_value_info("i", onnx.TensorProto.INT64, ["rows"]),
    ]
    out = make_tensor_value_info("out", element, ["rows", tokens, channels])
    opsets = [make_opsetid("", 23), make_opsetid(DOMAIN, VERSION)]
    model = make_model(make_graph([attending], "one", values, [out]), opset_imports=opsets)
    define(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) V step by step, each rounded to the inputs' type as Attention's own definition does it."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scale = query.shape[-1] ** -0.25
    weights = ((query * scale) @ (key * scale).mT).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)
