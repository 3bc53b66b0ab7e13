"""Finds the first layer whose output is not finite, the cause of black images and NaN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dive_fast.engines.node_runner import CPU, MEMORY, NodeRun, cast_inputs, read_graph, run_nodes, short
from dive_fast.types import InputError

# Ops whose constant inputs are weights. In other ops a constant of -inf is a mask.
WEIGHTED = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "MatMul",
    "RMSNormalization",
)


@dataclass(frozen=True)
class BadLayer:
    """The first node, in graph order, whose output is not finite although its inputs are.

    `scope` is its torch module ("" if unknown), `output` the tensor's name, `dtype` its type. `infinite` and `nan` count
    values of the output's `size`; `inputs_reach` is the largest finite |value| of the computed inputs, `bad_weights` the
    number of weights that are not finite.
    """

    part: str
    scope: str
    node: str
    op: str
    output: str
    dtype: str
    infinite: int
    nan: int
    size: int
    inputs_reach: float
    bad_weights: int

    def describe(self) -> str:
        """Returns layer, cause and remedy as one sentence."""
        counts = " and ".join(f"{n} {name}" for n, name in ((self.infinite, "inf"), (self.nan, "NaN")) if n)
        where = f"{self.part}: {self.scope or f'node {self.node}'} ({self.op})"
        if self.bad_weights:
            cause = f"{self.bad_weights} of its weights are not finite"
            remedy = "export it again in float32 or bf16, or mend the model"
        else:
            cause = f"its inputs reach {self.inputs_reach:.1e}"
            remedy = "keep it in float32 or bf16" if self.dtype == "float16" else "look at the weights or the adapter"
        return (
            f"{where} is the first layer whose output is not finite: {counts} of {self.size} values, {cause}; {remedy}"
        )


def first_bad_layer(
    path: Path, inputs: Mapping[str, np.ndarray], provider: str = CPU, *, memory: int = MEMORY
) -> BadLayer | None:
    """Returns the first layer of the graph in `path` with inf or NaN from finite inputs; None if every output is finite.

    `inputs` maps every graph input to an array (floats are cast to the graph's type). Every node's result is checked,
    `memory` bytes at a time. On a CPU a float16 node is computed in float32 and its result rounded, so a sum that overflows
    inside a node on a GPU is not found.
    Raises `InputError` for inputs that do not fit or are not finite, and as `run_nodes`.
    """
    path = Path(path)
    for name, array in cast_inputs(read_graph(path).graph, inputs, str(path)).items():
        if not _finite(array):
            raise InputError(
                f"{path}: input {name} is not finite as {array.dtype}; look at what comes before this graph"
            )
    for run in run_nodes(path, inputs, provider, memory):
        bad = _bad_layer(run, path.parent.name)
        if bad is not None:
            return bad
    return None


def _bad_layer(run: NodeRun, part: str) -> BadLayer | None:
    bad = next(((name, array) for name, array in run.outputs.items() if not _finite(array)), None)
    if bad is None or not all(_finite(array) for array in run.inputs.values()):
        return None
    bad_weights = sum(int((~np.isfinite(array)).sum()) for array in run.weights.values() if _floats(array))
    if bad_weights and run.node.op_type not in WEIGHTED:
        return None
    name, array = bad
    return BadLayer(
        part=part,
        scope=short(run.scope),
        node=run.node.name,
        op=run.node.op_type,
        output=name,
        dtype=str(array.dtype),
        infinite=int(np.isinf(array).sum()),
        nan=int(np.isnan(array).sum()),
        size=array.size,
        inputs_reach=max((_largest(array) for array in run.inputs.values() if _floats(array)), default=0.0),
        bad_weights=bad_weights,
    )


def _floats(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _finite(array: np.ndarray) -> bool:
    return not _floats(array) or bool(np.isfinite(array).all())


def _largest(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0
