"""Carrying out a plan in this process: batches across shards, files written and noise drawn beside the computation.

Any number of processes may carry out the same plan in the same place: a shard belongs to whoever claims it, and a claim
ends with its process. So a killed run, a second start and a cluster's array job are the same thing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dive_fast.synth.checks import check_run
from dive_fast.synth.clock import StageClock
from dive_fast.synth.folder import WAIT, claim_folder, finished_shards, kept, open_store, write_ids
from dive_fast.synth.layout import PairFiles, shard_pairs
from dive_fast.synth.manifest import shard_name
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.synth.store import Claim, Store
from dive_fast.synth.verify import repair, verify
from dive_fast.synth.writer import DatasetWriter, Written
from dive_fast.types import DiveError, InputError, PairSpec

if TYPE_CHECKING:
    from dive_fast.engines import Engine
    from dive_fast.synth.render import ImageJob, Start

Window = tuple[tuple[str, str], ...]
"""The prompts, by identity and camera, that are encoded together."""
AHEAD = 8  # batches whose shards are claimed, and whose prompts are encoded, at once


@dataclass(frozen=True)
class Summary:
    """What a run did. `pairs` and `shards` are the whole plan's, `images` and the times this run's.

    `times` are seconds by stage: encode (prompts, photos), denoise, decode; wait, in which the engine stood idle for
    noise, photos or the disk; and write, which runs beside the others and is added up over threads. `finished` tells
    whether the whole plan is done, by this run or others.
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


def part_of(plan: SynthesisPlan, number: int, of: int) -> range:
    """Part `number` of `of` of the plan's shards, counted from 0: every `of`-th one."""
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
    """Makes every pair of `plan`, or of some `shards` of it, at `out`; a rerun keeps what is finished.

    `check` first looks through all that is finished (`verify`), and has what is damaged made anew.
    `rows` are UNet rows a call: with guidance, `rows // 2` images at a time, of whatever prompts. `out` becomes a SYSU
    tree with `plan.json` and `shards/`; nothing outside it is written, and nothing that this plan did not make is
    replaced. `exp/` is written by whoever finishes last; all identities are in "trainval", the last one in val (see
    `folder.write_ids`). Raises `InputError` before any work when plan, engine and folder do not go together; `DiveError`
    when the disk, the numbers (an image that is not finite or is blank) or Ctrl-C stop the run: what is finished is kept.
    """
    store = open_store(out)
    check_run(plan, engine, out, rows)
    clock = StageClock("encode", "denoise", "decode", "wait", "write")
    began = time.perf_counter()
    claim_folder(store, plan)
    if check:
        with tqdm(total=len(plan.pairs), unit="pair", desc="check", disable=not progress) as bar:
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
    finished = len(finished_shards(store, plan)) == plan.shards
    if finished:
        write_ids(store, plan)
    store.tidy()
    seconds = time.perf_counter() - began
    return Summary(
        plan_id=plan.plan_id,
        pairs=len(plan.pairs),
        shards=plan.shards,
        resumed_shards=resumed,
        images=run.images,
        seconds=round(seconds, 3),
        images_per_second=round(run.images / seconds, 3),
        times=clock.seconds(),
        finished=finished,
    )


@dataclass(eq=False)
class _Shard:
    """A claimed shard on its way: what is written of it, and how many of its images are still to come."""

    number: int
    pairs: Sequence[tuple[PairSpec, PairFiles]]
    claim: Claim
    written: dict[str, Future[Written]] = field(default_factory=dict)
    open: int = 0


class _Run:
    """One call of `synthesize`, once plan, engine and place are known to go together. `images` counts those made."""

    def __init__(
        self, plan: SynthesisPlan, engine: Engine, store: Store, rows: int, clock: StageClock, numbers: Sequence[int]
    ) -> None:
        from dive_fast.synth.render import Renderer

        self._plan, self._engine, self._store, self._clock, self._numbers = plan, engine, store, clock, numbers
        self._renderer = Renderer(engine, plan, clock)
        self._size = plan.sampling.images(rows)
        self._shards: dict[int, _Shard] = {}  # claimed and not recorded yet
        self.images = 0

    def make(self, progress: bool) -> None:
        """Makes every shard asked for that is not finished, and waits for those that others are at."""
        sides = len(self._plan.sides)
        total = sides * sum(map(self._pairs, self._numbers))
        with tqdm(total=total, unit="image", desc="synth", disable=not progress) as bar:
            try:
                while todo := self._todo():
                    bar.update(total - sides * sum(map(self._pairs, todo)) - bar.n)
                    with DatasetWriter(self._store, self._plan, self._engine.fingerprint, self._clock) as writer:
                        claimed = self._make(todo, writer, bar.update)
                    if not claimed:
                        time.sleep(WAIT)  # the rest is in others' hands; should they die, it falls to us
            finally:
                for shard in list(self._shards.values()):
                    self._release(shard)

    def _pairs(self, shard: int) -> int:
        return min(self._plan.shard_size, len(self._plan.pairs) - shard * self._plan.shard_size)

    def _todo(self) -> list[int]:
        finished = finished_shards(self._store, self._plan)
        return [number for number in self._numbers if number not in finished]

    def _make(self, todo: Iterable[int], writer: DatasetWriter, advance: Callable[[int], object]) -> bool:
        """Makes the shards of `todo` that no other process has; gives whether there was one.

        While the engine is at a batch, a thread prepares the next one.
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
        """The images to make of every shard that could be claimed; what needs no engine is queued at once."""
        for number in todo:
            pairs = shard_pairs(self._plan, number)
            claim = self._store.claim(number)
            if claim is None:
                continue
            if self._store.size(shard_name(number)):  # its owner finished it just before
                claim.__exit__(None, None, None)
                continue
            shard = self._shards[number] = _Shard(number, pairs, claim)
            jobs = [job for pair, names in shard.pairs for job in self._open(shard, pair, names, writer)]
            advance(len(shard.pairs) * len(self._plan.sides) - len(jobs))
            shard.open = len(jobs)
            if jobs:
                yield jobs
            else:
                self._record(shard, writer)

    def _open(self, shard: _Shard, pair: PairSpec, names: PairFiles, writer: DatasetWriter) -> Iterator[ImageJob]:
        from dive_fast.synth.render import ImageJob

        photo = None if pair.photo is None else Path(str(self._plan.photo_root)) / pair.photo
        if photo is not None and names["rgb"] not in shard.written:
            with self._clock("wait"):
                shard.written[names["rgb"]] = writer.photo(photo, names["rgb"], shard.number)
        for side in self._plan.sides:
            found = kept(self._store, self._plan, pair, names[side], self._engine.fingerprint)
            if found is None:
                yield ImageJob(
                    pair, side, names[side], shard.number, photo if self._plan.strength is not None else None
                )
            else:
                shard.written[names[side]] = Future()
                shard.written[names[side]].set_result(found)

    def _batches(self, opened: Iterator[list[ImageJob]]) -> Iterator[tuple[list[ImageJob], Window]]:
        """Full batches across shards, the last one excepted, each with the prompts of a window of batches around it."""
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
        self._renderer.use_prompts(window)
        images = self._renderer.images(ready)
        self.images += len(images)
        with self._clock("wait"):
            for job, image in zip(ready.jobs, images, strict=True):
                shard = self._shards[job.shard]
                shard.written[job.name] = writer.image(image, job.pair, job.side, job.name, job.shard)
                shard.open -= 1
                if not shard.open:
                    self._record(shard, writer)
        advance(len(images))

    def _record(self, shard: _Shard, writer: DatasetWriter) -> None:
        writer.record(shard.number, shard.pairs, shard.written, lambda: self._release(shard))

    def _release(self, shard: _Shard) -> None:
        if self._shards.pop(shard.number, None) is not None:
            shard.claim.__exit__(None, None, None)
