"""The record of a bench: as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.bench.timing import Spread
from dive_fast.io import atomic_write, write_json
from dive_fast.types import to_dict

if TYPE_CHECKING:
    from dive_fast.bench.ceilings import Ceilings
    from dive_fast.bench.measure import Job, RowResult
    from dive_fast.bench.peers import ContestResult, PeerResult, PresetResult

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
    "UNet: % of floor",
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
    ceilings: Ceilings
    rows: list[RowResult]
    job: Job | None = None
    peers: ContestResult | None = None
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
        for name, floor in (("UNet call", row.unet_floor), ("batch", row.batch_floor)):
            if floor is not None:
                single |= {f"{name} GFLOP": floor.gflop, f"{name} share of the floor": floor.share}
        for metric, value in single.items():
            if value is not None:
                yield ["engine", result.backend, row.rows, metric, "", value, "", 1]
    if result.peers is not None:
        timed: list[PeerResult | PresetResult] = [*result.peers.results, *result.peers.presets]
        for peer in timed:
            yield _line("peers", peer.name, result.peers.rows, "batch ms", peer.ms)
            yield _line("peers", peer.name, result.peers.rows, "images/s", peer.images_per_second)


def _line(part: str, name: str, rows: int, metric: str, values: Spread) -> list[Any]:
    return [part, name, rows, metric, values.p5, values.p50, values.p95, values.n]


def finite(value: Any) -> Any:
    """`value` with null for every number that is not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text(result: BenchResult) -> str:
    """For a reader: a line a row count, the job, the peers."""
    lines = [f"{result.model}: {result.engine}"]
    work = ", ".join(f"{value:.4g} GFLOP per {name}" for name, value in result.gflop.items())
    lines.append(
        f"counted work: {work}; measured ceilings: {result.ceilings.tflops:.3g} TFLOP/s ({result.ceilings.precision} matrix "
        f"product), {result.ceilings.gbytes:.3g} GB/s (copy)"
    )
    lines += _columns([HEADER, *map(_cells, result.rows)])
    if result.job is not None:
        lines.append(
            f"whole job, files and all: {result.job.images_per_second:.3g} images/s at {result.job.rows} rows "
            f"({result.job.images} images)"
        )
    return "\n".join([*lines, *(peer_lines(result.peers) if result.peers is not None else [])])


def _cells(row: RowResult) -> tuple[str, ...]:
    """Of `HEADER`."""
    rate = row.images_per_second
    image = {stage: f"{ms.p50 / row.images:.3g}" for stage, ms in row.stages_ms.items()}
    memory = row.memory.torch_gpu or row.memory.process
    floors = [f"{100 * floor.share:.0f} %" for floor in (row.unet_floor, row.batch_floor) if floor is not None]
    return (
        str(row.rows),
        f"{rate.p50:.3g} ({rate.p5:.3g} to {rate.p95:.3g})",
        f"{row.pairs_per_second['both sides generated']:.3g}",
        f"{row.unet_ms.p50:.4g}",
        *image.values(),
        "?" if memory is None else f"{memory:.0f}",
        *(floors or ("?", "?")),
    )


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def peer_lines(contest: ContestResult) -> list[str]:
    """A line a peer: speed, parity, and a ratio only where both sides' images are right."""
    lines = [
        f"peers: {contest.rows} rows, {contest.images} images a call, {contest.precision}; images count as right from "
        f"{contest.least_psnr:.1f} dB against exact networks on (plain diffusers' own rounding, twice over)"
    ]
    ours_right = contest.results[0].parity.passed
    for peer in contest.results:
        rate = peer.images_per_second
        lines.append(
            f"  {peer.name:<13} {rate.p50:.3g} images/s ({rate.p5:.3g} to {rate.p95:.3g}), {peer.parity.psnr:.1f} dB, "
            f"largest difference {peer.parity.largest:.1f} of 255: {_verdict(peer, ours_right)}"
        )
    for preset in contest.presets:
        rate = preset.images_per_second
        faster = ", ".join(f"{r.median:.2f}x {name} ({r.low:.2f} to {r.high:.2f})" for name, r in preset.faster.items())
        lines.append(
            f"  {preset.name:<13} {rate.p50:.3g} images/s ({rate.p5:.3g} to {rate.p95:.3g}), OTHER images, {preset.how}: "
            f"{faster or 'no ratio, as ours failed parity'}"
        )
    if contest.presets:
        lines.append("  what the images of presets are worth: docs/presets.md")
    return [*lines, *(f"  {name:<13} left out: {why}" for name, why in contest.left_out.items())]


def _verdict(peer: PeerResult, ours_right: bool) -> str:
    if not peer.parity.passed:
        return "parity failed"
    if peer.name == "ours":
        return "parity passed"
    if peer.ours_faster is None or not ours_right:
        return "no ratio, as ours failed parity"
    faster = peer.ours_faster
    return f"ours is {faster.median:.2f}x as fast ({faster.low:.2f} to {faster.high:.2f} in {faster.n} turns)"
