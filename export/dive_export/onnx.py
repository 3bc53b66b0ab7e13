"""Writes a network as an ONNX file, and measures onnxruntime's numbers against torch's."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from dive_export.graphs import Axis, Graph
from dive_export.kernel_node import define
from dive_export.precision import as_precision, converted, rounded_run, upcast_bfloat16
from dive_fast.io import atomic_path, brief
from dive_fast.types import DiveError
from dive_fast.unet.optimizations import WithoutUnitScale

OPSET = 23
# Rows of the traced example; then images and prompts are more than 1 too, which the tracer would take for a constant.
TRACED_ROWS = 4
# float32: onnxruntime may be a few times as far from the exact result as torch is (its GroupNormalization loses digits
# where the mean is far from zero: 6 times torch's error at mean 3, deviation 1), and torch's own error adds to their
# distance. A wrong graph is off by 1000s.
# Half: what counts is where values are rounded to half, and that is the same places in the graph and in the run that the
# budget comes from (`rounded_run`); sums are float32 in both. 2 leaves room for the places where they differ.
# Either is of the worst row of the same inputs, as rows of a trained network differ tenfold.
BUDGET = {"fp32": 6.0, "fp16": 2.0, "bf16": 2.0}
FULL = (errno.ENOSPC, errno.EDQUOT)
AS_EXPORTED = "the graph as exported"
UPCAST = (
    "the graph's bfloat16 values in float32, as onnxruntime has no bfloat16 on a CPU: its rounding at run time is not"
)


@dataclass(frozen=True)
class Parity:
    """How far onnxruntime is from torch in float32, on random inputs.

    `errors` maps a number of rows to the root mean square difference of the worst row, `largest` to the largest
    absolute one. `budget` bounds the former: `BUDGET` times the worst row's own error against float64 of torch, with
    operands rounded to the graph's precision. `measured` describes what ran.
    """

    budget: float
    errors: dict[str, float]
    largest: dict[str, float]
    measured: str = AS_EXPORTED

    @property
    def worst(self) -> float:
        return max(self.errors.values())


def export_graph(graph: Graph, path: Path, precision: str = "fp32") -> None:
    """Writes `path` (and its weights beside it as `<name>.data`): opset 23, weights and floats of `precision`.

    The weights' file is referenced by name, so the file must not be renamed later. Raises `DiveError` naming the part and
    the cause when the exporter fails, and `OSError` when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = _free_axes(graph)
    inputs = graph.feeds(graph.examples(TRACED_ROWS))
    with _quiet(f"export {graph.part}"), torch.no_grad():
        torch.onnx.export(
            converted(graph.module, precision),
            tuple(as_precision(x, precision) for x in inputs.values()),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=[graph.output],
            # inputs that a forward takes as `*inputs` are one argument to the exporter
            dynamic_shapes=(shapes,) if isinstance(graph.module, WithoutUnitScale) else shapes,
            external_data=True,
            verbose=False,
        )
    _finish(path)
    # By path: the checker then finds the weights' file too, and models over 2 GB pass.
    onnx.checker.check_model(str(path), full_check=True)
    _check_weights(graph.part, path)


def _finish(path: Path) -> None:
    """Defines our own nodes, and drops the exporter's metadata but for each node's torch module, which probes read."""
    model = onnx.load(str(path), load_external_data=False)
    define(model)
    for node in [*model.graph.node, *(node for function in model.functions for node in function.node)]:
        scopes = [note for note in node.metadata_props if note.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
    with atomic_path(path) as temporary:
        onnx.save(model, str(temporary))


def _check_weights(part: str, path: Path) -> None:
    """Raises `DiveError` if the weights' file is too short: the exporter does not report every failed write."""
    for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place and (path.parent / place["location"]).stat().st_size < int(place["offset"]) + int(place["length"]):
            raise DiveError(f"export {part}: {place['location']} was written short of {tensor.name}; is the disk full?")


def _free_axes(graph: Graph) -> tuple[dict[int, torch.export.Dim] | None, ...]:
    axes = {axis.name: axis for shape in graph.inputs.values() for axis in shape if isinstance(axis, Axis)}
    dims = {
        name: torch.export.Dim(name, min=1)
        if axis.multiple == 1
        else axis.multiple * torch.export.Dim(f"{name}_over_{axis.multiple}", min=1)
        for name, axis in axes.items()
    }
    free = ({i: dims[n.name] for i, n in enumerate(shape) if isinstance(n, Axis)} for shape in graph.inputs.values())
    return tuple(places or None for places in free)


@contextlib.contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Hides the exporter's output, and prints it to standard error if the exporter fails; raises with the cause."""
    chatter = io.StringIO()
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps the cause
            cause = cause.__cause__
        reason = brief(cause)
        if isinstance(cause, OSError) and cause.errno in (None, *FULL):  # numpy reports a short write without errno
            raise OSError(cause.errno or errno.ENOSPC, reason) from error
        print(chatter.getvalue(), file=sys.stderr)
        raise DiveError(f"{what}: the ONNX exporter failed ({type(cause).__name__}: {reason})") from error
    finally:
        log.setLevel(level)


def measure_parity(graph: Graph, path: Path, precision: str = "fp32", rows: Sequence[int] | None = None) -> Parity:
    """Runs the file beside torch's float32 at `rows`, by default 1, 3 and `graph.check_rows`.

    A bfloat16 graph runs with its values in float32. Over budget raises `DiveError` naming the part.
    """
    counts = sorted(set(rows or (1, min(3, graph.check_rows), graph.check_rows)))
    examples = {count: graph.examples(count, seed=count) for count in counts}
    expected, own = {}, []
    for count, inputs in examples.items():
        with torch.no_grad():
            expected[count] = graph.reference(*inputs.values())
        at_precision = expected[count]
        if precision != "fp32":
            # of the reference too: a module that computes something else must not widen its own budget
            at_precision = rounded_run(graph.reference, list(inputs.values()), precision)
        own.append(_worst_row((at_precision.double() - _exact(graph, inputs)).numpy()))
    errors, largest = {}, {}
    with _session(path, precision) as (run, width):
        for count, inputs in examples.items():
            feeds = {name: as_precision(x, precision) for name, x in graph.feeds(inputs).items()}
            arrays = {name: as_precision(x, width).numpy() for name, x in feeds.items()}
            difference = np.abs(run([graph.output], arrays)[0].astype(np.float32) - expected[count].numpy())
            errors[str(count)], largest[str(count)] = _worst_row(difference), float(difference.max())
    measured = AS_EXPORTED if width == precision else UPCAST
    parity = Parity(BUDGET[precision] * max(own), errors, largest, measured)
    if not parity.worst <= parity.budget:  # so that NaN fails too
        raise DiveError(
            f"export {graph.part}: onnxruntime is {parity.worst:.2e} from torch (root mean square), "
            f"{parity.budget:.2e} is allowed; the engine is not finished, report this with your versions"
        )
    return parity


@contextlib.contextmanager
def _session(path: Path, precision: str) -> Iterator[tuple[Callable[..., list[np.ndarray]], str]]:
    """Yields onnxruntime's `run` for the graph on this CPU, and the precision of its floating inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        if precision == "bf16":
            upcast_bfloat16(path, Path(scratch) / path.name)
            path = Path(scratch) / path.name
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        yield session.run, "fp32" if precision == "bf16" else precision


def _exact(graph: Graph, inputs: dict[str, Tensor]) -> Tensor:
    """Runs the reference in float64, converted in place to save memory."""
    try:
        with torch.no_grad():
            exact: Tensor = graph.reference.double()(
                *(x.double() if x.is_floating_point() else x for x in inputs.values())
            )
    finally:
        graph.reference.float()  # loses nothing: every float32 is a float64
    return exact


def _worst_row(difference: np.ndarray) -> float:
    rows = np.square(difference.astype(np.float64)).reshape(len(difference), -1)
    return float(np.sqrt(rows.mean(axis=1).max()))
