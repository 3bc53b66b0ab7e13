"""A network to an ONNX file, and the measurement of how far onnxruntime's numbers are from torch's."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dive_export.graphs import Graph
from dive_fast.types import DiveError

OPSET = 23
# onnxruntime may be a few times as far from the exact result as torch is (its GroupNormalization loses digits where the
# mean is far from zero: 6 times torch's error at mean 3, deviation 1), and torch's own error adds to their distance.
# Both are the worst row's of the same inputs, as rows of a trained network differ tenfold. A wrong graph is off by 1000s.
BUDGET = 6.0


@dataclass(frozen=True)
class Parity:
    """How far onnxruntime is from torch, both float32, on random inputs.

    `errors` maps a number of rows to the root mean square difference of the worst row, `largest` to the largest
    absolute one. `budget` bounds the former: `BUDGET` times torch's own worst row against float64.
    """

    budget: float
    errors: dict[str, float]
    largest: dict[str, float]

    @property
    def worst(self) -> float:
        return max(self.errors.values())


def export_graph(graph: Graph, path: Path, rows_max: int) -> None:
    """Writes `path` (and its weights beside it as `<name>.data`): opset 23, float32, rows free up to `rows_max`.

    The weights' file is referenced by name, so the file must not be renamed later. Raises `DiveError` naming the part
    and the cause when the exporter fails.
    """
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = torch.export.Dim("rows", min=1, max=rows_max) if rows_max > 1 else None
    shapes = {name: {0: rows} if rows is not None and graph.has_rows(name) else None for name in graph.inputs}
    with _quiet(f"export {graph.part}"), torch.no_grad():
        torch.onnx.export(
            graph.module,
            graph.examples(min(2, rows_max)),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=[graph.output],
            dynamic_shapes=shapes,
            external_data=True,
            verbose=False,
        )
    # By path: the checker then finds the weights' file too, and models over 2 GB pass.
    onnx.checker.check_model(str(path), full_check=True)


@contextlib.contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Holds the exporter's chatter back; when it fails, the chatter goes to standard error and the cause is named."""
    chatter = io.StringIO()
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        print(chatter.getvalue(), file=sys.stderr)
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter wraps the reason in pages of advice
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:300]
        raise DiveError(f"{what}: the ONNX exporter failed ({type(cause).__name__}: {reason})") from error
    finally:
        log.setLevel(level)


def measure_parity(graph: Graph, path: Path) -> Parity:
    """Runs the file beside torch at 1, 3 and `graph.check_rows` rows; over budget raises `DiveError` naming the part."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    errors, largest, own = {}, {}, []
    for rows in sorted({1, min(3, graph.check_rows), graph.check_rows}):
        inputs = graph.examples(rows, seed=rows)
        with torch.no_grad():
            expected = graph.module(*inputs).numpy()
        arrays = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
        difference = np.abs(session.run([graph.output], arrays)[0] - expected)
        errors[str(rows)] = _worst_row(difference)
        largest[str(rows)] = float(difference.max())
        own.append(_worst_row((torch.from_numpy(expected).double() - _exact(graph, inputs)).numpy()))
    parity = Parity(BUDGET * max(own), errors, largest)
    if not parity.worst <= parity.budget:  # so that NaN fails too
        raise DiveError(
            f"export {graph.part}: onnxruntime is {parity.worst:.2e} from torch (root mean square), "
            f"{parity.budget:.2e} is allowed; the engine is not finished, report this with your versions"
        )
    return parity


def _exact(graph: Graph, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The network in float64. In place, because there may be no memory for a second model."""
    try:
        with torch.no_grad():
            exact: torch.Tensor = graph.module.double()(*(x.double() if x.is_floating_point() else x for x in inputs))
    finally:
        graph.module.float()  # loses nothing: every float32 is a float64
    return exact


def _worst_row(difference: np.ndarray) -> float:
    rows = np.square(difference.astype(np.float64)).reshape(len(difference), -1)
    return float(np.sqrt(rows.mean(axis=1).max()))
