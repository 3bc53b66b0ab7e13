"""The parity report: how far each block of a network is from torch in onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dive_export.graphs import Graph
from dive_fast.engines.node_runner import CPU, cast_inputs, read_graph, run_nodes, scopes, short

# The modules whose output is compared: items of these lists, and these single layers outside of them.
BLOCK = re.compile(
    r"(?:[\w.]+\.)?(?:resnets|attentions|downsamplers|upsamplers|layers)\.\d+"
    r"|(?:[\w.]+\.)?(?:conv_in|conv_out|time_embedding|embeddings|final_layer_norm|quant_conv|post_quant_conv)"
)


@dataclass(frozen=True)
class BlockParity:
    """The distance of one block's output from torch's in float32, relative to the root mean square of torch's.

    `rms` is the root mean square difference, `largest` the largest absolute one, `size` torch's root mean square. `rms` and
    `largest` are None, with the reason in `why`, if the graph has no such tensor.
    """

    block: str
    tensor: str | None
    size: float
    rms: float | None
    largest: float | None
    why: str = ""


def graph_parity(graph: Graph, path: Path, rows: int = 2, seed: int = 0, provider: str = CPU) -> list[BlockParity]:
    """Returns `block_parity` of an exported part on random examples; any variant, precision and optimizations."""
    examples = graph.examples(rows, seed)
    arrays = {name: tensor.numpy() for name, tensor in graph.feeds(examples).items()}
    return block_parity(path, graph.reference, arrays, reference_inputs=examples, provider=provider)


def block_parity(
    graph_path: Path,
    module: nn.Module,
    inputs: Mapping[str, np.ndarray],
    *,
    reference_inputs: Mapping[str, Tensor] | None = None,
    provider: str = CPU,
) -> list[BlockParity]:
    """Compares the graph with `module` block by block, in torch's order, the whole network last.

    `inputs` feed the graph by name. Torch reads the same values, rounded to the graph's types, as float32 in the graph's
    order, or `reference_inputs` if it reads others. `module` must be float32, with the module names of the export. Every
    node's result is rounded to the graph's type. A block is found if its nodes are adjacent, keep their module names, and
    exactly one tensor of its output's shape leaves them; others are listed without numbers. Raises as `run_nodes`.
    """
    model = read_graph(graph_path)
    arrays = cast_inputs(model.graph, inputs, str(graph_path))
    if reference_inputs is None:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        reference_inputs = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    with torch.no_grad(), _recorded(module) as expected:
        whole = module(*reference_inputs.values())
    leaving = _leaving(model.graph, list(expected))
    wanted = {name for names in leaving.values() for name in names} | {model.graph.output[0].name}
    found = {
        name: array
        for run in run_nodes(graph_path, inputs, provider)
        for name, array in run.outputs.items()
        if name in wanted
    }
    rows = [_compare(block, output, {n: found[n] for n in leaving[block]}) for block, output in expected.items()]
    last = model.graph.output[0].name
    return [*rows, _compare("output", whole.numpy(), {last: found[last]})]


def table(rows: Sequence[BlockParity]) -> str:
    """Formats the report, a line per block."""
    width = max(len(row.block) for row in rows)
    lines = [f"{'block':{width}}  {'rms error':>10}  {'max error':>10}  {'rms of torch':>12}"]
    for row in rows:
        if row.rms is None or row.largest is None:
            lines.append(f"{row.block:{width}}  {row.why}")
        else:
            lines.append(f"{row.block:{width}}  {row.rms:10.2e}  {row.largest:10.2e}  {row.size:12.3g}")
    return "\n".join(lines)


@contextmanager
def _recorded(module: nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """Records the outputs of a module's blocks, by short name in the order of execution, within the context."""
    outputs: dict[str, np.ndarray] = {}

    def hook(name: str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                outputs[name] = first.numpy().copy()  # a later layer may work in place

        return record

    names = {name: short(name) for name, _ in module.named_modules()}
    handles = [
        module.get_submodule(name).register_forward_hook(hook(block))
        for name, block in names.items()
        if BLOCK.fullmatch(block)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _leaving(graph: Any, blocks: Sequence[str]) -> dict[str, list[str]]:
    """Returns, for each block, its tensors that other blocks read or that leave the graph.

    A block whose nodes are not adjacent gets none: an optimization has rewritten it (the shared prefix splits the first
    transformer).
    """
    where = [short(scope) for scope in scopes(graph)]
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[str]] = {}
    for node, scope in zip(graph.node, where, strict=True):
        for name in node.input:
            readers.setdefault(name, []).append(scope)
    leaving: dict[str, list[str]] = {}
    for block in blocks:
        inside = [i for i, scope in enumerate(where) if _inside(scope, block)]
        together = bool(inside) and inside[-1] - inside[0] + 1 == len(inside)
        leaving[block] = [
            name
            for i in (inside if together else [])
            for name in graph.node[i].output
            if name in outputs or not all(_inside(reader, block) for reader in readers.get(name, []))
        ]
    return leaving


def _inside(scope: str, block: str) -> bool:
    return scope == block or scope.startswith(f"{block}.")


def _compare(block: str, expected: np.ndarray, found: Mapping[str, np.ndarray]) -> BlockParity:
    size = float(np.sqrt(np.square(expected, dtype=np.float64).mean()))
    same = {name: array for name, array in found.items() if array.shape == expected.shape}
    if len(same) != 1:
        why = f"{len(same)} tensors of its shape leave it in the graph" if same else "not in the graph as one block"
        return BlockParity(block, None, size, None, None, why)
    ((name, array),) = same.items()
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        return BlockParity(block, name, size, None, None, f"{bad} of {array.size} values are not finite")
    difference = np.abs(array.astype(np.float64) - expected)
    scale = size or 1.0
    return BlockParity(
        block, name, size, float(np.sqrt(np.square(difference).mean())) / scale, float(difference.max()) / scale
    )
