"""Synthesis in this process: batches span shards; threads draw noise and write files while the engine computes.

Any number of processes may run the same plan in the same place: each claims shards, and a claim ends with its process. So a
killed run, a second start and an array job on a cluster need no special case.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.progress import ProgressBar
from dive_fast.synth.checks import check_run
from dive_fast.synth.clock import StageClock
from dive_fast.synth.folder import WAIT, claim_folder, finished_image, finished_shards, open_store, write_ids
from dive_fast.synth.layout import PairFiles, shard_pairs
from dive_fast.synth.manifest import shard_name
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.synth.store import Release, Store
from dive_fast.synth.verify import repair, verify
from dive_fast.synth.writer import DatasetWriter, Written
from dive_fast.types import DiveError, InputError, PairSpec

if TYPE_CHECKING:
    from dive_fast.engines import Engine
    from dive_fast.synth.render import ImageJob, Start

Window = tuple[tuple[str, str], ...]
"""Prompts, (identity, camera), that are encoded together."""
AHEAD = 8  # batches whose shards are claimed and whose prompts are encoded at once


@dataclass(frozen=True)
class Summary:
    """What a run did. `pairs` and `shards` are the whole plan's, `images` and the times this run's.

    `times` are seconds by stage: encode (prompts, photos), denoise, decode; wait, while the engine is idle for noise,
    photos or the disk; write, the sum over threads that run beside the others. `finished` is whether the whole plan is
    done, by this run or others. `rejected` counts the pairs that this run recorded without images, as it could not read
    their photos; `lost` says of each such photo why.
    """

    plan_id: str
    pairs: int
    shards: int
    resumed_shards: int
    images: int
    seconds: float
    images_per_second: float
    times: dict[str, float]
    finished: bool
    rejected: int = 0
    lost: tuple[str, ...] = ()


def part_of(plan: SynthesisPlan, number: int, of: int) -> range:
    """Every `of`-th shard of the plan from shard `number` on, both counted from 0."""
    if of < 1 or not 0 <= number < of:
        raise InputError(f"shards {number}/{of}: the part must be 0 to {of - 1} of at least 1")
    return range(number, plan.shards, of)


def synthesize(
    plan: SynthesisPlan,
    engine: Engine,
    out: Path | str,
    rows: int = 32,
    progress: bool = True,
    shards: Sequence[int] | None = None,
    check: bool = False,
) -> Summary:
    """Makes every pair of `plan`, or of its `shards`, at `out`; a rerun keeps what is finished.

    `check` first verifies finished shards, and makes damaged images and rejected pairs again. A photo that is missing or
    damaged costs its own pairs, which are recorded as rejected. `rows` are UNet rows a call: with guidance,
    `rows // 2` images of any prompts. `out` becomes a SYSU tree with `plan.json` and `shards/`. The run writes nothing
    outside it and replaces no file that this plan did not make. The process that finishes last writes `exp/`
    (`folder.write_ids`). Raises `InputError` before any work when plan, engine and folder do not fit; `DiveError` when
    the disk, an image that is not finite or is blank, or Ctrl-C stops the run. Finished work is kept.
    """
    store = open_store(out)
    check_run(plan, engine, out, rows)
    clock = StageClock("encode", "denoise", "decode", "wait", "write")
    began = time.perf_counter()
    claim_folder(store, plan)
    if check:
        with ProgressBar(total=len(plan.pairs), unit="pair", desc="check", disable=not progress) as bar:
            repair(store, verify(store, plan, bar.update))
    resumed = len(finished_shards(store, plan))
    run = _Run(plan, engine, store, rows, clock, range(plan.shards) if shards is None else shards)
    try:
        run.make(progress)
    except KeyboardInterrupt as error:
        done = len(finished_shards(store, plan))
        raise DiveError(
            f"interrupted: {done} of {plan.shards} shards are done in {out}; run the same command again to continue"
        ) from error
    made = Made(run.images, clock.seconds(), run.rejected, tuple(sorted(run.lost)))
    return finish_run(store, plan, resumed, made, time.perf_counter() - began)


@dataclass(frozen=True)
class Made:
    """What one or several processes made: the fields of `Summary` that add up."""

    images: int = 0
    times: dict[str, float] = field(default_factory=dict)
    rejected: int = 0
    lost: tuple[str, ...] = ()

    def __add__(self, other: Made) -> Made:
        times = {name: self.times.get(name, 0.0) + seconds for name, seconds in other.times.items()}
        lost = dict.fromkeys((*self.lost, *other.lost))
        return Made(self.images + other.images, times, self.rejected + other.rejected, tuple(lost))


def finish_run(store: Store, plan: SynthesisPlan, resumed: int, made: Made, seconds: float) -> Summary:
    """Writes the identity lists if the whole plan is done, tidies up, and sums the run up."""
    finished = len(finished_shards(store, plan)) == plan.shards
    if finished:
        write_ids(store, plan)
    store.tidy()
    return Summary(
        plan_id=plan.plan_id,
        pairs=len(plan.pairs),
        shards=plan.shards,
        resumed_shards=resumed,
        images=made.images,
        seconds=round(seconds, 3),
        images_per_second=round(made.images / seconds, 3),
        times={name: round(value, 3) for name, value in made.times.items()},
        finished=finished,
        rejected=made.rejected,
        lost=made.lost,
    )


@dataclass(eq=False)
class _OpenShard:
    """A claimed shard: what is written of it, and how many of its images are not made yet."""

    number: int
    pairs: Sequence[tuple[PairSpec, PairFiles]]
    release: Release
    written: dict[str, Future[Written | None]] = field(default_factory=dict)
    open: int = 0


class _Run:
    """One call of `synthesize`, after its checks. `images`, `rejected` and `lost` are those of `Summary`."""

    def __init__(
        self, plan: SynthesisPlan, engine: Engine, store: Store, rows: int, clock: StageClock, numbers: Sequence[int]
    ) -> None:
        from dive_fast.synth.render import Renderer

        self._plan, self._engine, self._store, self._clock, self._numbers = plan, engine, store, clock, numbers
        self._renderer = Renderer(engine, plan, clock)
        # No larger than the plan: smaller batches are padded to it.
        self._size = min(plan.sampling.images(rows), len(plan.pairs) * len(plan.sides))
        self._shards: dict[int, _OpenShard] = {}  # claimed and not recorded yet
        self.images = self.rejected = 0
        self.lost: set[str] = set()

    def make(self, progress: bool) -> None:
        """Makes every unfinished shard, and waits for those that other processes have claimed."""
        sides = len(self._plan.sides)
        total = sides * sum(map(self._pairs, self._numbers))
        bars = ProgressBar(total=total, unit="image", desc="synth", disable=not progress)
        with self._engine.batches_of(self._size), bars as bar:
            try:
                while todo := self._todo():
                    bar.update(total - sides * sum(map(self._pairs, todo)) - bar.n)
                    with DatasetWriter(self._store, self._plan, self._engine.fingerprint, self._clock) as writer:
                        claimed = self._make(todo, writer, bar.update)
                    self.rejected += writer.rejected
                    self.lost |= set(writer.lost.values())
                    if not claimed:
                        time.sleep(WAIT)  # others have the rest; if they die, this process takes it
            finally:
                for shard in list(self._shards.values()):
                    self._release(shard)

    def _pairs(self, shard: int) -> int:
        return min(self._plan.shard_size, len(self._plan.pairs) - shard * self._plan.shard_size)

    def _todo(self) -> list[int]:
        finished = finished_shards(self._store, self._plan)
        return [number for number in self._numbers if number not in finished]

    def _make(self, todo: Iterable[int], writer: DatasetWriter, advance: Callable[[int], object]) -> bool:
        """Makes the shards of `todo` that no other process has; returns whether there was one.

        A thread prepares the next batch while the engine computes.
        """
        from dive_fast.synth.render import prepare

        ahead: deque[tuple[Window, Future[Start]]] = deque()
        claimed = False
        with ThreadPoolExecutor(1, thread_name_prefix="dive-noise") as helper:
            for batch, window in self._batches(self._opened(todo, writer, advance)):
                claimed = True
                ahead.append((window, helper.submit(prepare, batch, self._plan, self._engine.latent_shape)))
                if len(ahead) > 1:
                    self._render(*ahead.popleft(), writer, advance)
            while ahead:
                self._render(*ahead.popleft(), writer, advance)
        return claimed

    def _opened(
        self, todo: Iterable[int], writer: DatasetWriter, advance: Callable[[int], object]
    ) -> Iterator[list[ImageJob]]:
        """Yields the images to make of every shard that could be claimed; queues at once what needs no engine."""
        for number in todo:
            pairs = shard_pairs(self._plan, number)
            release = self._store.claim(number)
            if release is None:
                continue
            if self._store.size(shard_name(number)):  # its owner finished it just before
                release()
                continue
            with suppress(FileNotFoundError):
                self._store.read(shard_name(number))  # raises now, not after the work, if a folder is in its place
            shard = self._shards[number] = _OpenShard(number, pairs, release)
            jobs = [job for pair, names in shard.pairs for job in self._open(shard, pair, names, writer)]
            advance(len(shard.pairs) * len(self._plan.sides) - len(jobs))
            shard.open = len(jobs)
            if jobs:
                yield jobs
            else:
                self._record(shard, writer)

    def _open(self, shard: _OpenShard, pair: PairSpec, names: PairFiles, writer: DatasetWriter) -> Iterator[ImageJob]:
        from dive_fast.synth.render import ImageJob

        photo = None if pair.photo is None else Path(str(self._plan.photo_root)) / pair.photo
        if photo is not None and names["rgb"] not in shard.written:
            with self._clock("wait"):
                shard.written[names["rgb"]] = writer.photo(photo, names["rgb"], shard.number)
        for side in self._plan.sides:
            found = finished_image(self._store, self._plan, pair, names[side], self._engine.fingerprint)
            if found is None:
                yield ImageJob(
                    pair, side, names[side], shard.number, photo if self._plan.strength is not None else None
                )
            else:
                shard.written[names[side]] = _finished(found)

    def _batches(self, opened: Iterator[list[ImageJob]]) -> Iterator[tuple[list[ImageJob], Window]]:
        """Yields full batches across shards (the last may be smaller), each with the prompts of its window of batches."""
        waiting: list[ImageJob] = []
        more = True
        while more or waiting:
            while more and len(waiting) < AHEAD * self._size:
                jobs = next(opened, None)
                more = jobs is not None
                waiting += jobs or []
            stop = len(waiting) if not more else len(waiting) - len(waiting) % self._size
            window = tuple(dict.fromkeys(job.key for job in waiting[:stop]))
            for first in range(0, stop, self._size):
                yield waiting[first : first + self._size][: stop - first], window
            del waiting[:stop]

    def _render(
        self, window: Window, start: Future[Start], writer: DatasetWriter, advance: Callable[[int], object]
    ) -> None:
        with self._clock("wait"):
            ready = start.result()
        if ready.jobs:
            self._renderer.use_prompts(window)
            images = self._renderer.images(ready)
            self.images += len(images)
            with self._clock("wait"):
                for job, image in zip(ready.jobs, images, strict=True):
                    self._made(job, writer.image(image, job.pair, job.side, job.name, job.shard), writer)
        for job in ready.lost:
            self._made(job, _finished(None), writer)
        advance(len(ready.jobs) + len(ready.lost))

    def _made(self, job: ImageJob, file: Future[Written | None], writer: DatasetWriter) -> None:
        shard = self._shards[job.shard]
        shard.written[job.name] = file
        shard.open -= 1
        if not shard.open:
            self._record(shard, writer)

    def _record(self, shard: _OpenShard, writer: DatasetWriter) -> None:
        writer.record(shard.number, shard.pairs, shard.written, lambda: self._release(shard))

    def _release(self, shard: _OpenShard) -> None:
        if self._shards.pop(shard.number, None) is not None:
            shard.release()


def _finished(file: Written | None) -> Future[Written | None]:
    future: Future[Written | None] = Future()
    future.set_result(file)
    return future
