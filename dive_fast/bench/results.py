"""The record of a bench: as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.bench.timing import Quantiles
from dive_fast.io import atomic_write, write_json
from dive_fast.types import to_dict

if TYPE_CHECKING:
    from dive_fast.bench.baselines import BaselineResult, BaselineResults, PresetResult
    from dive_fast.bench.measure import Job, RowResult
    from dive_fast.bench.roofline import Peaks

KIND = "dive-fast bench"
VERSION = 2
HEADER = (
    "rows",
    "images/s (p5 to p95)",
    "pairs/s",
    "UNet ms",
    "encode",
    "bank",
    "denoise",
    "decode",
    "write ms an image",
    "MB",
    "UNet: % of bound",
    "batch",
)
COLUMNS = ("part", "name", "rows", "metric", "p5", "p50", "p95", "n")


@dataclass(frozen=True)
class BenchResult:
    """Everything that was measured, and where: `conditions` say what a reader must know to compare it with another.

    `gflop` is counted, of one UNet row, one decoded image and one prompt.
    """

    model: str
    engine: str
    backend: str
    precision: str
    height: int
    width: int
    sampling: dict[str, Any]
    image_format: str
    conditions: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, str]
    commit: str
    gflop: dict[str, float]
    peaks: Peaks
    rows: list[RowResult]
    job: Job
    baselines: BaselineResults | None = None
    kind: str = KIND
    version: int = VERSION


def record(result: BenchResult) -> dict[str, Any]:
    """As JSON can hold it: what is not finite becomes null."""
    found: dict[str, Any] = finite(to_dict(result))
    return found


def write_files(result: BenchResult, out: Path) -> None:
    """`bench.json` and `bench.csv` in the folder `out`."""
    write_json(out / "bench.json", record(result))
    atomic_write(out / "bench.csv", table_csv(result))


def table_csv(result: BenchResult) -> str:
    """A line for each distribution and each number, `COLUMNS`; a single number stands as p50."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_lines(result))
    return stream.getvalue()


def _lines(result: BenchResult) -> Iterator[list[Any]]:
    for row in result.rows:
        spreads = {
            "UNet call ms": row.unet_ms,
            "batch ms": row.batch_ms,
            "images/s": row.images_per_second,
            **{f"{stage} ms": ms for stage, ms in row.stages_ms.items()},
        }
        for metric, ms in spreads.items():
            yield _line("engine", result.backend, row.rows, metric, ms)
        single = {
            **{f"pairs/s, {kind}": rate for kind, rate in row.pairs_per_second.items()},
            "bytes an image": row.bytes_per_image,
            "process peak MB": row.memory.process,
            "torch GPU peak MB": row.memory.torch_gpu,
            "GPU in use MB": row.memory.gpu_in_use,
        }
        for name, bound in (("UNet call", row.unet_bound), ("batch", row.batch_bound)):
            single |= {f"{name} GFLOP": bound.gflop, f"{name} fraction of the bound": bound.fraction}
        for metric, value in single.items():
            if value is not None:
                yield ["engine", result.backend, row.rows, metric, "", value, "", 1]
    if result.baselines is not None:
        timed: list[BaselineResult | PresetResult] = [*result.baselines.results, *result.baselines.presets]
        for baseline in timed:
            yield _line("baselines", baseline.name, result.baselines.rows, "batch ms", baseline.ms)
            yield _line("baselines", baseline.name, result.baselines.rows, "images/s", baseline.images_per_second)


def _line(part: str, name: str, rows: int, metric: str, values: Quantiles) -> list[Any]:
    return [part, name, rows, metric, values.p5, values.p50, values.p95, values.n]


def finite(value: Any) -> Any:
    """`value` with null for every number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text(result: BenchResult) -> str:
    """For a reader: a line a row count, the job, the baselines."""
    lines = [f"{result.model}: {result.engine}"]
    work = ", ".join(f"{value:.4g} GFLOP per {name}" for name, value in result.gflop.items())
    lines.append(
        f"counted work: {work}; measured peaks: {result.peaks.tflops:.3g} TFLOP/s ({result.peaks.precision} matrix "
        f"product), {result.peaks.gbytes:.3g} GB/s (copy)"
    )
    cells = [HEADER, *map(_cells, result.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += ["  ".join(map(str.rjust, row, widths)) for row in cells]
    lines.append(
        f"whole job, files and all: {result.job.images_per_second:.3g} images/s at {result.job.rows} rows "
        f"({result.job.images} images)"
    )
    return "\n".join([*lines, *(baseline_lines(result.baselines) if result.baselines is not None else [])])


def _cells(row: RowResult) -> tuple[str, ...]:
    """Of `HEADER`."""
    rate = row.images_per_second
    image = {stage: f"{ms.p50 / row.images:.3g}" for stage, ms in row.stages_ms.items()}
    memory = row.memory.torch_gpu or row.memory.process
    return (
        str(row.rows),
        f"{rate.p50:.3g} ({rate.p5:.3g} to {rate.p95:.3g})",
        f"{row.pairs_per_second['both sides generated']:.3g}",
        f"{row.unet_ms.p50:.4g}",
        *image.values(),
        "?" if memory is None else f"{memory:.0f}",
        *(f"{100 * bound.fraction:.0f} %" for bound in (row.unet_bound, row.batch_bound)),
    )


def baseline_lines(found: BaselineResults) -> list[str]:
    """A line a baseline: speed, parity, and a ratio only where both sides' images are right."""
    lines = [
        f"baselines{' of the teacher' if found.teacher else ''}, {found.sampling.describe()}: {found.rows} rows, "
        f"{found.images} images a call, {found.precision}; images count as right from {found.least_psnr:.1f} dB against "
        "exact networks on (plain diffusers' own rounding, twice over)"
    ]
    for baseline in found.results:
        rate = baseline.images_per_second
        lines.append(
            f"  {baseline.name:<13} {rate.p50:.3g} images/s ({rate.p5:.3g} to {rate.p95:.3g}), "
            f"{baseline.parity.psnr:.1f} dB, largest difference {baseline.parity.largest:.1f} of 255: "
            f"{_verdict(baseline)}"
        )
    for preset in found.presets:
        rate = preset.images_per_second
        faster = ", ".join(f"{r.median:.2f}x {name} ({r.low:.2f} to {r.high:.2f})" for name, r in preset.faster.items())
        lines.append(
            f"  {preset.name:<13} {rate.p50:.3g} images/s ({rate.p5:.3g} to {rate.p95:.3g}), OTHER images, {preset.how}: "
            f"{faster or 'no ratio, as ours failed parity'}"
        )
    if found.presets:
        lines.append("  what OTHER images are worth: docs/speed.md")
    return [*lines, *(f"  {name:<13} left out: {why}" for name, why in found.left_out.items())]


def _verdict(baseline: BaselineResult) -> str:
    if not baseline.parity.passed:
        return "parity failed"
    if baseline.name == "ours":
        return "parity passed"
    faster = baseline.ours_faster
    if faster is None:
        return "no ratio, as ours failed parity"
    return f"ours is {faster.median:.2f}x as fast ({faster.low:.2f} to {faster.high:.2f} in {faster.n} rounds)"
