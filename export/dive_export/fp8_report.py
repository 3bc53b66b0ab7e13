"""The report of what FP8 does to each layer of a UNet, and the timing gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dive_fast.json_files import read_json
from dive_fast.settings import PositiveFloat, Settings
from dive_fast.types import InputError, from_dict, shown

REPORT = "fp8.json"


@dataclass(frozen=True)
class LayerReport:
    """One layer: `error` is the whole UNet's when this layer alone is quantised; None: not measured or not finite.

    `largest` is the activation's calibrated |value|; `why` is the reason why a layer is not quantised.
    """

    name: str
    node: str
    op: str
    error: float | None
    largest: float | None
    quantised: bool
    why: str = ""


@dataclass(frozen=True)
class Fp8Report:
    """The decision for every layer. `error` is that of the written graph on `held_out` calls; `error_of_all` that with every
    layer that passed the timing gate. None: layers changed after the measurement, or it is not finite.
    """

    budget: float
    error: float | None
    error_of_all: float | None
    calls: int
    held_out: int
    layers: tuple[LayerReport, ...]
    to: str = "fp8"

    @property
    def quantised(self) -> tuple[LayerReport, ...]:
        return tuple(layer for layer in self.layers if layer.quantised)


def read_report(engine: Path) -> Fp8Report:
    """Reads the report of a quantised engine folder; a damaged one raises `InputError`."""
    path = engine / REPORT
    data = read_json(path, "report of quantize")
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, list):
        raise InputError(f"{path} lists no layers; quantise the engine again")
    return from_dict(
        Fp8Report, {**data, "layers": tuple(from_dict(LayerReport, row, str(path)) for row in layers)}, str(path)
    )


@dataclass(frozen=True)
class LayerTime(Settings):
    """Milliseconds of one layer on one GPU, in the graph's own type and in FP8."""

    plain_ms: PositiveFloat
    fp8_ms: PositiveFloat


def read_times(path: Path) -> dict[str, LayerTime]:
    """A timing table, `{"layers": {NAME: {"plain_ms": 0.21, "fp8_ms": 0.13}, ...}}`; other keys are free (gpu, versions).

    NAME is a `LayerReport.name`. Broken files and times that are no numbers > 0 raise `InputError`.
    """
    data = read_json(path, "timing table")
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, dict) or not layers:
        raise InputError(f'timing table {path} has no "layers"; it maps each layer to its plain_ms and fp8_ms')
    return {
        name: from_dict(LayerTime, row, f"timing table {path}: layer {shown(name)}") for name, row in layers.items()
    }


def timing_gate(report: Fp8Report, times: Mapping[str, LayerTime]) -> Fp8Report:
    """Leaves out the layers that FP8 does not make faster; `error` becomes None.

    Raises `InputError` if a quantised layer is not in the table, or a name of the table not in the report.
    """
    names = {layer.name for layer in report.layers}
    missing = [layer.name for layer in report.quantised if layer.name not in times]
    unknown = sorted(set(times) - names)
    for problem, wrong in (("lacks", missing), ("names unknown", unknown)):
        if wrong:
            raise InputError(
                f"timing table {problem} {len(wrong)} layer(s), first {shown(wrong[0])}; profile the graph of this report"
            )
    layers = []
    for layer in report.layers:
        if layer.quantised and times[layer.name].fp8_ms >= times[layer.name].plain_ms:
            time = times[layer.name]
            why = f"timing gate: {time.fp8_ms:.3g} ms in fp8, {time.plain_ms:.3g} ms without"
            layer = replace(layer, quantised=False, why=why)
        layers.append(layer)
    return report if tuple(layers) == report.layers else replace(report, layers=tuple(layers), error=None)
