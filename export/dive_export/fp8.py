"""Chooses which layers of a UNet graph become FP8 (e4m3) or int8, and measures the error.

The timing gate leaves out layers that FP8 does not make faster on the target GPU. The error gate then leaves out those
with the largest error alone, until the whole network's error is within the budget.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dive_export.calibration import Calibration, Inputs, opened, peaks
from dive_export.fp8_report import Fp8Report, LayerReport, LayerTime, timing_gate
from dive_export.options import Fp8Config
from dive_export.qdq import SWITCHES, Layer, find_layers, insert, save
from dive_fast.engines.node_runner import CPU, cast_inputs, plain_session, read_graph
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
    """Writes the UNet graph of `onnx_path` (float32 or float16, any variant) with layers in `config.to` to `out_path`.

    With `times`, layers that FP8 does not make faster are left out first. The error gate runs the network once per layer and
    held-out call, and a few times more; `provider` may be a GPU's. The written file is measured again and loses layers until
    it is within the budget. A file that is written in part stays. Raises `InputError` for a graph without layers to
    quantise, inputs that do not fit or an `out_path` that exists.
    """
    config = config or Fp8Config()
    if out_path.exists():
        raise InputError(f"fp8: {out_path} exists; choose another place or delete it")
    model = read_graph(onnx_path)
    layers = find_layers(model.graph)
    report = _candidates(layers, config, calibration)
    if not report.quantised:
        raise InputError(f"fp8: {onnx_path} has no layer to quantise beside those kept ({', '.join(config.keep)})")
    progress(f"fp8: {len(report.quantised)} of {len(layers)} layers to try, {len(calibration.scales)} calls for scales")
    report = _with_peaks(report, layers, model, onnx_path, calibration.scales, config.percentile, provider)
    if times is not None:
        report = timing_gate(report, times)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    switched = _quantised(model, onnx_path, layers, report, switched=True)
    with opened(switched, onnx_path, provider, beside=out_path.parent) as session:
        meter = _Meter(session, onnx_path, calibration.held_out)
        report, costliest = _error_gate(report, meter, progress)
    while True:
        save(_quantised(model, onnx_path, layers, report), onnx_path, out_path)
        onnx.checker.check_model(str(out_path), full_check=True)
        error = meter.error_of(plain_session(str(out_path), provider, str(out_path)))
        if error <= config.budget or not report.quantised:
            break
        progress(f"fp8: the graph written has error {error:.2e}, one layer more is left out")
        report = _without(report, costliest.pop(0), "error gate: left out for the graph as written")
        out_path.unlink()
        out_path.with_name(f"{out_path.name}.data").unlink(missing_ok=True)  # onnx would append to it
    progress(f"fp8: {len(report.quantised)} of {len(layers)} layers, error {error:.2e} of {config.budget:.2e} allowed")
    return replace(report, error=error)


def _quantised(model: Any, path: Path, layers: Sequence[Layer], report: Fp8Report, *, switched: bool = False) -> Any:
    """Copies `model`, the graph of `path`, with the layers that `report` quantises (`qdq.insert`)."""
    largest = {layer.name: layer.largest or 0.0 for layer in report.quantised}
    chosen = [layer for layer in layers if layer.name in largest]
    by_input = {layer.activation: largest[layer.name] for layer in chosen}
    return insert(model, path, chosen, by_input, to=report.to, switched=switched)


def _without(report: Fp8Report, name: str, why: str) -> Fp8Report:
    rows = (replace(row, quantised=False, why=why) if row.name == name else row for row in report.layers)
    return replace(report, layers=tuple(rows))


def _candidates(layers: Sequence[Layer], config: Fp8Config, calibration: Calibration) -> Fp8Report:
    rows = []
    for layer in layers:
        pattern = next((pattern for pattern in config.keep if fnmatch.fnmatchcase(layer.name, pattern)), None)
        why = "" if pattern is None else f"kept by {pattern!r}"
        rows.append(LayerReport(layer.name, layer.node, layer.op, None, None, pattern is None, why))
    return Fp8Report(
        config.budget, None, None, len(calibration.scales), len(calibration.held_out), tuple(rows), config.to
    )


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
    rows = (replace(row, largest=found[reads[row.name]]) if row.quantised else row for row in report.layers)
    report = replace(report, layers=tuple(rows))
    for row in report.quantised:
        if row.largest is None or not math.isfinite(row.largest):
            report = _without(report, row.name, "its inputs are not finite in calibration")
    return report


class _Meter:
    """Measures a switched graph's error on held-out calls for any choice of layers."""

    def __init__(self, session: Any, path: Path, calls: Sequence[Inputs]) -> None:
        graph = read_graph(path).graph
        self.session = session
        self.calls = [cast_inputs(graph, call, str(path)) for call in calls]
        (self.count,) = next(value.shape for value in session.get_inputs() if value.name == SWITCHES)
        self.expected = self._outputs(np.zeros(self.count, bool))  # those of the graph at `path`
        if not all(0 < np.linalg.norm(array.astype(np.float64)) < math.inf for array in self.expected):
            raise InputError(
                f"fp8: {path} has outputs that are not finite, or only zeros, in a held-out call; "
                "first_bad_layer names the layer"
            )

    def error(self, choice: np.ndarray) -> float:
        return _worst(self._outputs(choice), self.expected)

    def error_of(self, session: Any) -> float:
        """Returns the error of another graph with the same inputs."""
        return _worst([session.run(None, call)[0] for call in self.calls], self.expected)

    def _outputs(self, choice: np.ndarray) -> list[np.ndarray]:
        return [self.session.run(None, {**call, SWITCHES: choice})[0] for call in self.calls]


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
        report = _without(report, name, f"the output is not finite with it in {report.to}")
    for name in order[:left_out]:
        report = _without(report, name, f"error gate: one of the {left_out} that cost most")
    return report, order[left_out:]


def _worst(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Returns the largest relative root mean square error of the calls, infinite if an output is not finite."""
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        want = want.astype(np.float64)
        error = float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst
