"""Carrying out a plan on this machine: shard after shard, images written beside the computation, safe to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dive_fast.data.names import natural_key
from dive_fast.data.writers import SysuTreeWriter
from dive_fast.synth.checks import check_run
from dive_fast.synth.clock import StageClock
from dive_fast.synth.dataset import claimed, clear_unfinished, finished_shards, shard_pairs
from dive_fast.synth.layout import PairFiles, pair_files
from dive_fast.synth.planfile import SynthesisPlan, generated_sides
from dive_fast.synth.writer import DatasetWriter
from dive_fast.types import DiveError

if TYPE_CHECKING:
    from dive_fast.engines import Engine


@dataclass(frozen=True)
class Summary:
    """What a run did. `pairs` and `shards` are the whole dataset's, `images` and the times this run's.

    `times` are seconds by stage: encode (prompts, photos), denoise, decode, and write, which runs beside the others
    and is added up over threads.
    """

    plan_id: str
    pairs: int
    shards: int
    resumed_shards: int
    images: int
    seconds: float
    images_per_second: float
    times: dict[str, float]


def synthesize(plan: SynthesisPlan, engine: Engine, out: Path | str, rows: int = 32, progress: bool = True) -> Summary:
    """Makes every pair of `plan` in the folder `out`; a rerun keeps finished shards and redoes the others.

    `rows` are UNet rows a call: with guidance, `rows // 2` images at a time, of whatever prompts. `out` becomes a SYSU
    tree with `plan.json` and `shards/`; nothing outside it is written, and nothing that this plan did not make is
    replaced. `exp/` is written at the end; all identities are in "trainval", the last one in val (see `_write_ids`).
    Raises `InputError` before any work when plan, engine and folder do not go together; `DiveError` when the disk, the
    numbers (an image that is not finite or is blank) or Ctrl-C stop the run: what is finished is kept.
    """
    out = Path(out)
    check_run(plan, engine, out, rows)
    files = pair_files(plan)
    clock = StageClock("encode", "denoise", "decode", "write")
    began = time.perf_counter()
    try:
        with claimed(out, plan):
            finished = finished_shards(out, plan, files)
            clear_unfinished(out, plan, files, finished)
            images = _Run(plan, engine, out, files, rows, clock).make(finished, progress)
            _write_ids(plan, out)
    except KeyboardInterrupt as error:
        done = len(finished_shards(out, plan, files))
        raise DiveError(
            f"interrupted: {done} of {plan.shards} shards are done in {out}; run the same command again to continue"
        ) from error
    seconds = time.perf_counter() - began
    return Summary(
        plan_id=plan.plan_id,
        pairs=len(plan.pairs),
        shards=plan.shards,
        resumed_shards=len(finished),
        images=images,
        seconds=round(seconds, 3),
        images_per_second=round(images / seconds, 3),
        times=clock.seconds(),
    )


@dataclass(frozen=True)
class _Run:
    """One call of `synthesize`, once plan, engine and folder are known to go together."""

    plan: SynthesisPlan
    engine: Engine
    out: Path
    files: Sequence[PairFiles]
    rows: int
    clock: StageClock

    def make(self, finished: set[int], progress: bool) -> int:
        """Makes every shard that is not `finished`; gives the number of images made."""
        todo = [number for number in range(self.plan.shards) if number not in finished]
        total, open_images = self._images(range(self.plan.shards)), self._images(todo)
        writer = DatasetWriter(self.out, self.plan.plan_id, self.engine.fingerprint, self.clock)
        bar = tqdm(total=total, initial=total - open_images, unit="image", desc="synth", disable=not progress)
        with bar, writer:
            for number in todo:
                self._make_shard(number, writer, bar.update)
        return open_images

    def _images(self, shards: Iterable[int]) -> int:
        return sum(len(generated_sides(pair)) for number in shards for pair in self.plan.shard(number))

    def _make_shard(self, number: int, writer: DatasetWriter, advance: Callable[[int], object]) -> None:
        """Queues the shard's photos, makes and queues its images, then queues its record."""
        from dive_fast.synth.render import ImageJob, generate

        pairs = shard_pairs(self.plan, self.files, number)
        written: dict[str, Future[str]] = {}
        jobs: list[ImageJob] = []
        for pair, names in pairs:
            photo = None if pair.photo is None else Path(str(self.plan.photo_root)) / pair.photo
            if photo is not None and names["rgb"] not in written:
                written[names["rgb"]] = writer.photo(photo, names["rgb"])
            start = photo if self.plan.strength is not None else None
            jobs += [ImageJob(pair, side, names[side], start) for side in generated_sides(pair)]
        for batch, images in generate(self.engine, jobs, self.plan, self.rows, self.clock):
            for job, image in zip(batch, images, strict=True):
                written[job.name] = writer.image(image, job.pair, job.side, job.name)
            advance(len(batch))
        writer.record(number, pairs, written)


def _write_ids(plan: SynthesisPlan, out: Path) -> None:
    """The AGW family trains on train and val together and cannot read an empty list, so val gets the last identity."""
    people = sorted({pair.pid for pair in plan.pairs}, key=natural_key)
    val = people[-1:] if len(people) > 1 else []
    SysuTreeWriter(out).write_ids(train=people[: len(people) - len(val)], val=val)
