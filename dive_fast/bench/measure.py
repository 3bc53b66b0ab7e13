"""One engine measured: UNet calls, whole batches by stage, memory, and how near the machine's own peaks that is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dive_export.resources import Resources
from dive_fast.bench.batch import IDENTITIES, STAGES, bench_plan, start_batch, timed_pass
from dive_fast.bench.timing import Quantiles, interleaved, quantiles
from dive_fast.engines.base import Engine, Request
from dive_fast.sampling import Sampling, Schedule
from dive_fast.synth.local import synthesize
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.bench.op_counts import ModelOpCounts, OpCount
    from dive_fast.bench.roofline import Peaks
    from dive_fast.synth.planfile import ImageFormat, SynthesisPlan
    from dive_fast.synth.render import Start

Advance = Callable[[str], object]
Pass = tuple[dict[str, float], float]
"""Milliseconds by stage, and bytes an image."""
JOB_BATCHES = 3


@dataclass(frozen=True)
class Memory:
    """Peaks of one batch in MB: this process's resident set (None where the system does not tell), torch's allocations
    on the GPU, and all that is in use on it by whomever, after the batch.
    """

    process: float | None
    torch_gpu: float | None = None
    gpu_in_use: float | None = None


@dataclass(frozen=True)
class Bound:
    """A call's counted work, what it takes at the measured peaks, and the `fraction` of the measured time that this is.

    `fraction` is that of the larger of both. Above 1 an engine computes less than the plain network, or the peak is too low.
    """

    gflop: float
    moved_gb: float
    unfused_gb: float
    arithmetic_ms: float
    traffic_ms: float
    fraction: float


@dataclass(frozen=True)
class RowResult:
    """Everything about calls of `rows` UNet rows: `images` images a batch.

    `batch_ms` is from prompts to pixels; `stages_ms` has writing beside it, which in synthesis runs at the same time.
    """

    rows: int
    images: int
    unet_ms: Quantiles
    batch_ms: Quantiles
    stages_ms: dict[str, Quantiles]
    images_per_second: Quantiles
    pairs_per_second: dict[str, float]
    bytes_per_image: float
    memory: Memory
    unet_bound: Bound
    batch_bound: Bound


@dataclass(frozen=True)
class Job:
    """A whole job by `synthesize`, files and all: what is left of the engine's rate."""

    rows: int
    images: int
    images_per_second: float
    times: dict[str, float]


def check_rows(engine: Engine, rows: Sequence[int], sampling: Sampling) -> None:
    """Raises `InputError` with every reason why the engine cannot run these calls."""
    profile = engine.spec.profile
    asked = [Request(n, profile.height, profile.width) for n in rows]
    reasons = list(dict.fromkeys(reason for request in asked for reason in engine.unsupported(request)))
    reasons += [f"{n} rows hold no image with guidance {sampling.guidance}" for n in rows if sampling.images(n) < 1]
    if reasons or not rows:
        raise InputError(f"bench: {'; '.join(reasons) or 'no row counts'}; choose other --rows")


def measure_rows(
    engine: Engine,
    rows: Sequence[int],
    sampling: Sampling,
    counted: Roofline,
    *,
    repeats: int,
    rounds: int,
    image_format: ImageFormat = "png",
    advance: Advance = lambda _: None,
) -> list[RowResult]:
    """Each row count: a warm-up batch, then `repeats` UNet calls and `rounds` batches, row counts interleaved.

    The engine can take `rows` (`check_rows`). `advance` is called with the name of every finished part.
    """
    plan = bench_plan(engine, max(map(sampling.images, rows)), sampling, image_format=image_format)
    starts = {n: start_batch(plan, engine, sampling.images(n)) for n in rows}
    for n, start in starts.items():
        timed_pass(engine, plan, start)
        advance(f"warm-up, {n} rows")
    runs = {str(n): _unet_call(engine, start, n) for n, start in starts.items()}
    calls = interleaved(runs, repeats, engine.device.type)
    advance("UNet calls")
    passes: dict[int, list[Pass]] = {n: [] for n in rows}
    memory: dict[int, Memory] = {}
    for number in range(rounds):
        for n, start in starts.items():
            taken, held = _watched(engine, plan, start)
            passes[n].append(taken)
            memory.setdefault(n, held)
        advance(f"batches, round {number + 1} of {rounds}")
    return [_row(n, starts[n], calls[str(n)], passes[n], memory[n], counted) for n in dict.fromkeys(rows)]


def measure_job(engine: Engine, rows: int, sampling: Sampling, image_format: ImageFormat = "png") -> Job:
    """`JOB_BATCHES` full batches by `synthesize` into a temporary folder, after a measurement has warmed the engine."""
    pairs = -(-JOB_BATCHES * sampling.images(rows) // 2)
    most = min(IDENTITIES, len(engine.prompts.table.identities), pairs)
    identities = next(count for count in range(most, 0, -1) if pairs % count == 0)  # the last batch is full, too
    plan = bench_plan(engine, pairs, sampling, identities, image_format)
    with tempfile.TemporaryDirectory(prefix="dive-bench-") as folder:
        done = synthesize(plan, engine, Path(folder) / "out", rows, progress=False)
    return Job(rows, done.images, done.images_per_second, done.times)


def _watched(engine: Engine, plan: SynthesisPlan, start: Start) -> tuple[Pass, Memory]:
    """A timed batch, and what it held: looking at this process's memory costs a thread 20 reads a second."""
    cuda = engine.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(engine.device)
    with Resources() as process:
        taken = timed_pass(engine, plan, start)
    if not cuda:
        return taken, Memory(process.peak_mb)
    free, total = torch.cuda.mem_get_info(engine.device)
    return taken, Memory(process.peak_mb, torch.cuda.max_memory_allocated(engine.device) / 1e6, (total - free) / 1e6)


def _unet_call(engine: Engine, start: Start, rows: int) -> Callable[[], object]:
    """A call as guidance asks for it: every image's empty prompt first, then its own."""
    keys = [job.key for job in start.jobs]
    embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
    conditioning, latents = engine.condition(embeddings), start.noise.to(engine.device)
    asked = index[1:] if len(keys) == rows else torch.cat([torch.zeros_like(index[1:]), index[1:]])
    return lambda: engine.eps(latents, 500, conditioning, asked)


def _row(
    rows: int, start: Start, calls: list[float], passes: list[Pass], memory: Memory, counted: Roofline
) -> RowResult:
    images = len(start.jobs)
    totals = [sum(ms for stage, ms in stages.items() if stage != "write") for stages, _ in passes]
    rate = quantiles([1e3 * images / ms for ms in totals])
    unet, batch = quantiles(calls), quantiles(totals)
    return RowResult(
        rows=rows,
        images=images,
        unet_ms=unet,
        batch_ms=batch,
        stages_ms={stage: quantiles([stages[stage] for stages, _ in passes]) for stage in STAGES},
        images_per_second=rate,
        pairs_per_second={"both sides generated": rate.p50 / 2, "real RGB": rate.p50},
        bytes_per_image=passes[0][1],
        memory=memory,
        unet_bound=counted.bound([(counted.largest(images), 1)], unet.p50),
        batch_bound=counted.bound(counted.batch(images, len({job.key for job in start.jobs})), batch.p50),
    )


class Roofline:
    """Counted operations of batches, and the least time that they take at this machine's peaks."""

    def __init__(self, counts: ModelOpCounts, peaks: Peaks, sampling: Sampling, engine: Engine) -> None:
        self._counts, self._peaks, self._sampling = counts, peaks, sampling
        schedule = Schedule.from_config(engine.scheduler_config, sampling.steps)
        self._guided = len(sampling.guided_timesteps(schedule))

    def largest(self, images: int) -> OpCount:
        """A UNet call with guidance, if there is any."""
        return self._counts.unet(self._sampling.rows(images))

    def batch(self, images: int, prompts: int = 0) -> list[tuple[OpCount, int]]:
        """The counts of each call from `prompts` prompts (and the empty one) to pixels, and how often it runs."""
        counts, sampling = self._counts, self._sampling
        parts = [(counts.decode(images), 1)]
        if prompts:
            parts.append((counts.encode(prompts + (sampling.guidance != 1.0)), 1))
        for rows, count in ((sampling.rows(images), self._guided), (images, sampling.steps - self._guided)):
            if count:
                parts.append((counts.unet(rows), count))
        return parts

    def bound(self, parts: Sequence[tuple[OpCount, int]], measured: float) -> Bound:
        """The bound of calls that follow each other, each `count` times; each call has its own bound."""
        flops, moved, unfused = (
            sum(count * getattr(work, name) for work, count in parts) for name in ("flops", "moved", "unfused")
        )
        return Bound(
            gflop=flops / 1e9,
            moved_gb=moved / 1e9,
            unfused_gb=unfused / 1e9,
            arithmetic_ms=self._peaks.arithmetic_ms(flops),
            traffic_ms=self._peaks.traffic_ms(moved),
            fraction=self.least_ms(parts) / measured,
        )

    def least_ms(self, parts: Sequence[tuple[OpCount, int]]) -> float:
        """The least milliseconds, at the peaks."""
        return sum(count * self._peaks.bound_ms(work.flops, work.moved) for work, count in parts)

    def least_seconds(self, rows: Sequence[int], repeats: int, rounds: int) -> float:
        """The least seconds that `measure_rows` and `measure_job` take."""
        total = 0.0
        for n in rows:
            images = self._sampling.images(n)
            batches = rounds + 1 + (JOB_BATCHES if n == max(rows) else 0)
            total += (repeats + 1) * self.least_ms([(self.largest(images), 1)])
            total += batches * self.least_ms(self.batch(images))
        return total / 1e3
