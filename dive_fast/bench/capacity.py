"""What a job of N pairs takes on a fleet of GPUs: time, GPU-hours, disk, and where more workers stop helping.

A prediction, from one measured rate and what is assumed of the fleet. The closed form is checked by an event simulation
(`simulate`). Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from dive_fast.bench.fleet import Fleet
from dive_fast.bench.simulate import simulate
from dive_fast.json_files import read_json
from dive_fast.types import InputError
from dive_fast.words import count, duration, size

TOLERANCE = 0.05  # of the time, beside one shard's: how far the simulation may be from the closed form
SHARDS = 100_000  # most shards that are simulated, in one run or, of a small job, in several
RUNS = 20  # whose mean is taken: one run of few shards is a draw of chance


@dataclass(frozen=True)
class Prediction:
    """For `workers`, a GPU or CPU each. `efficiency` is what they would need at the measured rate over what they take;
    `bound` what limits: GPUs or CPUs, disk, network, or shards (fewer than workers). `off` is the simulation's mean time
    over the closed form's, less 1, for the first `simulated_shards` shards; `failures` is its mean number of them.
    """

    workers: int
    seconds: float
    gpu_hours: float
    efficiency: float
    bound: str
    off: float | None = None
    agrees: bool | None = None
    simulated_shards: int = 0
    failures: float = 0.0

    @property
    def simulated_efficiency(self) -> float | None:
        return None if self.off is None else self.efficiency / (1 + self.off)


def closed_form(fleet: Fleet, workers: int, shards: int | None = None) -> float:
    """Seconds from the start to the last record of all shards, or of the first `shards`: the longer of compute and disk.

    Compute: the last shards of n workers end spread over a shard's time, the last one (n - 1) / (2 n + 2) of it after the
    mean; with a worker for each shard, the slowest counts. Disk: the first shard, then writes without a gap.
    """
    if workers < 1:
        raise InputError(f"capacity: workers must be at least 1, got {workers}")
    count = fleet.shards if shards is None else shards
    if workers < count:
        tail = (workers - 1) / (2 * workers + 2)
        computing = fleet.shard_seconds * (count / workers + tail)
    else:
        computing = _slowest_of(fleet, count, waits=workers == count)
    writing = fleet.shard_seconds + (count - 1) * fleet.write_seconds
    return fleet.startup + max(computing, writing) + fleet.write_seconds


def _slowest_of(fleet: Fleet, count: int, waits: bool) -> float:
    """Mean seconds of the slowest of `count` shards that are begun at once: its tries fail with probability q, the most of
    `count` geometric numbers of failures has the mean sum over k >= 1 of 1 - (1 - q^k)^count, and a failure costs what the
    try lasted, cut off at the whole shard's time, and, where it `waits` for its worker as no other is idle, `startup`.
    """
    hazard = 1 / (3600 * fleet.mtbf_hours)
    q = -math.expm1(-hazard * fleet.compute_seconds)
    if q == 0:
        return fleet.compute_seconds
    lost = 1 / hazard - fleet.compute_seconds * (1 - q) / q
    most = math.ceil(math.log(1e-6 / count) / math.log(q))  # what is left of the sum is below 1e-6
    failures = sum(-math.expm1(count * math.log1p(-(q**k))) for k in range(1, most + 1))
    return fleet.compute_seconds + failures * (lost + (fleet.startup if waits else 0.0))


def predict(fleet: Fleet, workers: int, seed: int | None = 0) -> Prediction:
    """The closed form, and with a `seed` the simulation beside it."""
    seconds = closed_form(fleet, workers)
    ideal = fleet.images / (workers * fleet.rate)
    found = Prediction(
        workers=workers,
        seconds=seconds,
        gpu_hours=workers * seconds / 3600,
        efficiency=ideal / seconds,
        bound=_bound(fleet, workers),
    )
    return found if seed is None else _checked(fleet, found, seed)


def _bound(fleet: Fleet, workers: int) -> str:
    if min(workers, fleet.shards) >= fleet.binds_at:
        return fleet.shared[0]
    return "shards" if workers > fleet.shards else f"{fleet.device}s"


def _checked(fleet: Fleet, found: Prediction, seed: int) -> Prediction:
    shards = min(fleet.shards, max(SHARDS, 20 * found.workers))
    runs = [simulate(fleet, found.workers, shards, seed + run) for run in range(min(RUNS, max(1, SHARDS // shards)))]
    seconds, expected = fmean(run.seconds for run in runs), closed_form(fleet, found.workers, shards)
    return replace(
        found,
        off=seconds / expected - 1,
        agrees=abs(seconds - expected) <= TOLERANCE * expected + fleet.shard_seconds,
        simulated_shards=shards,
        failures=fmean(run.failures for run in runs),
    )


def measured(path: Path) -> dict[str, Any]:
    """The fields of a `Fleet` that a bench.json, which is untrusted, has measured, at its fastest row count.

    Raises `InputError` for a file without them.
    """
    data = read_json(path, "bench result")
    rows = data.get("rows") if isinstance(data, dict) else None
    found: list[tuple[float, float]] = []
    for row in rows if isinstance(rows, list) else ():
        rate = row.get("images_per_second") if isinstance(row, dict) else None
        if isinstance(rate, dict) and _positive(rate.get("p50")) and _positive(row.get("bytes_per_image")):
            found.append((float(rate["p50"]), float(row["bytes_per_image"])))
    if not found:
        raise InputError(f"{path} holds no measured rate; give the bench.json of dive-fast bench --out, or --rate")
    rate, bytes_per_image = max(found)
    hardware = data.get("hardware")
    on_cpu = isinstance(hardware, dict) and hardware.get("device") == "cpu"
    return {"rate": rate, "bytes_per_image": bytes_per_image, "device": "CPU" if on_cpu else "GPU"}


def measured_sampling(path: Path) -> dict[str, Any]:
    """The sampling that a bench.json, which is untrusted, was measured with; a file without it raises `InputError`."""
    data = read_json(path, "bench result")
    sampling = data.get("sampling") if isinstance(data, dict) else None
    if not isinstance(sampling, dict):
        raise InputError(f"{path} does not say how images were sampled; give the bench.json of dive-fast bench --out")
    return sampling


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def table(fleet: Fleet, predictions: Sequence[Prediction]) -> str:
    """For a reader, labelled as what it is."""
    kind, limit = fleet.shared
    shared = (
        "nothing that workers share is limited"
        if math.isinf(limit)
        else f"{kind} {limit / 1e6:,.0f} MB/s binds from {fleet.binds_at:,.1f} workers on"
    )
    lines = [
        f"prediction, not a measurement: {count(fleet.pairs, 'pair')}, {count(fleet.images, 'image')} at "
        f"{fleet.rate:.4g} images/s a {fleet.device}, {fleet.bytes_per_image:,.0f} bytes each",
        f"disk {size(fleet.images * fleet.bytes_per_image)}; {shared}; "
        f"{count(fleet.shards, 'shard')} of {fleet.compute_seconds:.3g} s",
        f"{fleet.device + 's':>6} {'wall time':>12} {fleet.device + '-hours':>11} {'efficiency':>10}  {'bound by':<9} "
        "simulated",
    ]
    for p in predictions:
        checked = "" if p.off is None else f"{100 * p.off:+.1f} %, {'agrees' if p.agrees else 'DISAGREES'}"
        lines.append(
            f"{p.workers:>6,} {duration(p.seconds):>12} {p.gpu_hours:>11,.2f} {100 * p.efficiency:>8.1f} %  "
            f"{p.bound:<9} {checked}"
        )
    return "\n".join(lines)
