"""Chooses which layers of a UNet graph become FP8 (e4m3), and measures the error.

The timing gate leaves out layers that FP8 does not make faster on the target GPU. The error gate then leaves out those
with the largest error alone, until the whole network's error is within the budget.
"""

from __future__ import annotations

import fnmatch
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dive_export.calibration import Calibration, Inputs, opened, peaks
from dive_export.fp8_report import Fp8Report, LayerReport, LayerTime, timing_gate
from dive_export.options import Fp8Config
from dive_export.qdq import SWITCHES, Layer, find_layers, insert, save
from dive_fast.engines.node_runner import CPU, cast_inputs, plain_session, read_graph
from dive_fast.io import clear_disk_errors
from dive_fast.types import InputError

Progress = Callable[[str], None]


def quantize(
    onnx_path: Path,
    out_path: Path,
    calibration: Calibration,
    config: Fp8Config | None = None,
    *,
    times: Mapping[str, LayerTime] | None = None,
    provider: str = CPU,
    progress: Progress = lambda line: None,
) -> Fp8Report:
    """Writes the UNet graph of `onnx_path` (float32 or float16, any form) with FP8 layers to `out_path`.

    With `times`, layers that FP8 does not make faster are left out first. The error gate runs the network once per layer and
    held-out call, and a few times more; `provider` may be a GPU's. The written file is measured again and loses layers until
    it is within the budget. Raises `InputError` for a graph without layers to quantise, inputs that do not fit or an
    `out_path` that exists.
    """
    config = config or Fp8Config()
    model = read_graph(onnx_path)
    layers = find_layers(model.graph)
    report = _candidates(layers, config, calibration)
    if not report.quantised:
        raise InputError(f"fp8: {onnx_path} has no layer to quantise beside those kept ({', '.join(config.keep)})")
    progress(f"fp8: {len(report.quantised)} of {len(layers)} layers to try, {len(calibration.scales)} calls for scales")
    report = _with_peaks(report, layers, model, onnx_path, calibration.scales, config.percentile, provider)
    if times is not None:
        report = timing_gate(report, times)
    with clear_disk_errors(out_path), _staging(out_path) as folder:
        with opened(_switched(report, layers, model, onnx_path), onnx_path, provider, beside=folder) as session:
            report, costliest = _error_gate(report, _Meter(session, onnx_path, calibration.held_out), progress)
        file = folder / out_path.name
        while True:
            _write(onnx_path, file, report)
            error = _error_of_file(file, onnx_path, calibration.held_out, provider)
            if error <= config.budget or not report.quantised:
                break
            progress(f"fp8: the graph written has error {error:.2e}, one layer more is left out")
            report = _without(report, costliest.pop(0), "error gate: left out for the graph as written")
        _move(file, out_path)
    progress(f"fp8: {len(report.quantised)} of {len(layers)} layers, error {error:.2e} of {config.budget:.2e} allowed")
    return replace(report, error=error)


@contextmanager
def _staging(out_path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `out_path`; raises `InputError` if `out_path` exists."""
    if out_path.exists():
        raise InputError(f"fp8: {out_path} exists; choose another place or delete it")
    out_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fp8-", dir=out_path.parent) as folder:
        yield Path(folder)


def _move(file: Path, out_path: Path) -> None:
    """Moves the weights first, so a graph at `out_path` is complete; the graph names the weights' file."""
    weights = file.with_name(f"{file.name}.data")
    if weights.exists():
        os.replace(weights, out_path.with_name(weights.name))
    os.replace(file, out_path)


def _write(onnx_path: Path, file: Path, report: Fp8Report) -> None:
    import onnx

    file.unlink(missing_ok=True)
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)  # onnx would append to it
    model = read_graph(onnx_path)
    chosen = {layer.name: layer for layer in report.quantised}
    layers = [layer for layer in find_layers(model.graph) if layer.name in chosen]
    if len(layers) != len(chosen):
        raise InputError(
            f"fp8: {onnx_path} has {len(layers)} of the {len(chosen)} layers of this report; it is another's"
        )
    largest = {layer.activation: chosen[layer.name].largest or 0.0 for layer in layers}
    save(insert(model, onnx_path, layers, largest), onnx_path, file)
    onnx.checker.check_model(str(file), full_check=True)


def _without(report: Fp8Report, name: str, why: str) -> Fp8Report:
    rows = (replace(row, quantised=False, why=why) if row.name == name else row for row in report.layers)
    return replace(report, layers=tuple(rows))


def _candidates(layers: Sequence[Layer], config: Fp8Config, calibration: Calibration) -> Fp8Report:
    rows = []
    for layer in layers:
        pattern = next((pattern for pattern in config.keep if fnmatch.fnmatchcase(layer.name, pattern)), None)
        why = "" if pattern is None else f"kept by {pattern!r}"
        rows.append(LayerReport(layer.name, layer.node, layer.op, None, None, pattern is None, why))
    return Fp8Report(config.budget, None, None, len(calibration.scales), len(calibration.held_out), tuple(rows))


def _with_peaks(
    report: Fp8Report,
    layers: Sequence[Layer],
    model: Any,
    path: Path,
    calls: Sequence[Inputs],
    percentile: float,
    provider: str,
) -> Fp8Report:
    """Adds the largest activations to the report; a layer whose inputs are not finite is left out."""
    reads = {layer.name: layer.activation for layer in layers}
    found = peaks(model, path, [reads[layer.name] for layer in report.quantised], calls, percentile, provider)
    rows = []
    for layer in report.layers:
        if layer.quantised:
            largest = found[reads[layer.name]]
            if math.isfinite(largest):
                layer = replace(layer, largest=largest)
            else:
                layer = replace(layer, quantised=False, why="its inputs are not finite in calibration")
        rows.append(layer)
    return replace(report, layers=tuple(rows))


def _switched(report: Fp8Report, layers: Sequence[Layer], model: Any, path: Path) -> Any:
    largest = {layer.name: layer.largest or 0.0 for layer in report.quantised}
    chosen = [layer for layer in layers if layer.name in largest]
    return insert(model, path, chosen, {layer.activation: largest[layer.name] for layer in chosen}, switched=True)


class _Meter:
    """Measures a switched graph's error on held-out calls for any choice of layers."""

    def __init__(self, session: Any, path: Path, calls: Sequence[Inputs]) -> None:
        graph = read_graph(path).graph
        self.session = session
        self.calls = [cast_inputs(graph, call, str(path)) for call in calls]
        (self.count,) = next(value.shape for value in session.get_inputs() if value.name == SWITCHES)
        self.expected = self._outputs(np.zeros(self.count, bool))
        if not all(0 < np.linalg.norm(array.astype(np.float64)) < math.inf for array in self.expected):
            raise InputError(
                f"fp8: {path} has outputs that are not finite, or only zeros, in a held-out call; "
                "first_bad_layer names the layer"
            )

    def error(self, choice: np.ndarray) -> float:
        return _worst(self._outputs(choice), self.expected)

    def _outputs(self, choice: np.ndarray) -> list[np.ndarray]:
        return _outputs_of(self.session, [{**call, SWITCHES: choice} for call in self.calls])


def _error_gate(report: Fp8Report, meter: _Meter, progress: Progress) -> tuple[Fp8Report, list[str]]:
    """Leaves out layers by their error alone, largest first, until the rest is within the budget.

    Bisects their number: if the error does not fall with every layer, a few too many may be left out, never too few, as the
    choice is measured. Also returns the layers that stay, largest error first.
    """
    names = [layer.name for layer in report.quantised]
    alone = {}
    for i, name in enumerate(names):
        alone[name] = meter.error(np.arange(len(names)) == i)
        progress(f"fp8: {name} alone {alone[name]:.2e} ({i + 1} of {len(names)})")
    order = sorted((name for name in names if math.isfinite(alone[name])), key=lambda name: -alone[name])

    def error_without(count: int) -> float:
        return meter.error(np.isin(names, order[count:]))

    error_of_all = error_without(0)
    left_out, over = (0, -1) if error_of_all <= report.budget else (len(order), 0)
    while left_out - over > 1:
        middle = (left_out + over) // 2
        left_out, over = (middle, over) if error_without(middle) <= report.budget else (left_out, middle)
    rows = tuple(replace(row, error=alone[row.name] if row.name in order else None) for row in report.layers)
    report = replace(report, error_of_all=error_of_all if math.isfinite(error_of_all) else None, layers=rows)
    for name in set(names) - set(order):
        report = _without(report, name, "the output is not finite with it in fp8")
    for name in order[:left_out]:
        report = _without(report, name, f"error gate: one of the {left_out} that cost most")
    return report, order[left_out:]


def _error_of_file(written: Path, original: Path, calls: Sequence[Inputs], provider: str) -> float:
    graph = read_graph(original).graph
    cast = [cast_inputs(graph, call, str(original)) for call in calls]
    outputs = []
    for path in (written, original):  # one at a time, for memory
        session = plain_session(str(path), provider, str(path))
        outputs.append(_outputs_of(session, cast))
    return _worst(*outputs)


def _outputs_of(session: Any, calls: Sequence[Inputs]) -> list[np.ndarray]:
    return [session.run(None, call)[0] for call in calls]


def _worst(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Returns the largest relative root mean square error of the calls, infinite if an output is not finite."""
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        want = want.astype(np.float64)
        error = float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst
