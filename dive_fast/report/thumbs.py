"""Thumbnails of pairs, sixteen pairs a JPEG, made once, by a few processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from dive_fast.data.images import open_image
from dive_fast.io import atomic_encode, canonical_json, sha256_bytes
from dive_fast.types import MODALITIES, DiveError, InputError, PairRecord

PACK = 16  # a page in any order loads at most as many packs as it has pairs, so a pack is small
ACROSS = 4  # cells a row of a pack
CELL = (80, 160)  # pixels of one side; multiples of 16, so that no JPEG block spans two cells
QUALITY = 82
MISSING, DAMAGED = {"rgb": 1, "ir": 2}, {"rgb": 4, "ir": 8}

_VERSION = 1  # of the drawing; a new one redraws every pack
_GREY, _CROSS = (128, 128, 128), (160, 160, 160)


@dataclass(frozen=True)
class PackJob:
    """Up to `PACK` pairs: (file, SHA-256) of both sides, RGB first, files relative to `dataset`."""

    dataset: Path
    folder: Path
    number: int
    pairs: tuple[tuple[tuple[str, str], tuple[str, str]], ...]


@dataclass(frozen=True)
class Pack:
    """A pack on disk: `digest` (32 bits) is part of its name; `flaws` has bits of MISSING and DAMAGED for each pair."""

    number: int
    digest: int
    flaws: bytes
    made: bool


def pack_job(dataset: Path, folder: Path, number: int, records: Iterable[PairRecord]) -> PackJob:
    """The inputs of `make_pack` for some records."""
    pairs = tuple(((r.files["rgb"], r.sha256["rgb"]), (r.files["ir"], r.sha256["ir"])) for r in records)
    return PackJob(dataset, folder, number, pairs)


def pack_name(number: int, digest: int) -> str:
    """A pack's file name; a thousand to a folder."""
    return f"{number // 1000}/{number}-{digest:08x}.jpg"


def make_pack(job: PackJob) -> Pack:
    """Finds the pack or draws it. Its name identifies its content, so an existing one is right."""
    there = [[(job.dataset / name).is_file() for name, _ in pair] for pair in job.pairs]
    flaws = [MISSING["rgb"] * (not rgb) + MISSING["ir"] * (not ir) for rgb, ir in there]
    digest = _digest(job, flaws)
    if (job.folder / pack_name(job.number, digest)).is_file():
        return Pack(job.number, digest, bytes(flaws), made=False)
    rows = -(-len(job.pairs) // ACROSS)
    sheet = Image.new("RGB", (2 * CELL[0] * ACROSS, CELL[1] * rows), _GREY)
    for at, pair in enumerate(job.pairs):
        left, top = at % ACROSS * 2 * CELL[0], at // ACROSS * CELL[1]
        for side, (name, _) in zip(MODALITIES, pair, strict=True):
            corner = left + (CELL[0] if side == "ir" else 0), top
            if not flaws[at] & MISSING[side]:
                flaws[at] |= _draw(sheet, corner, job.dataset / name, DAMAGED[side])
            if flaws[at] & (MISSING[side] | DAMAGED[side]):
                _cross(sheet, corner)
    digest = _digest(job, flaws)  # a pack with damaged images is redrawn at each run
    path = job.folder / pack_name(job.number, digest)
    atomic_encode(path, lambda stream: sheet.save(stream, "JPEG", quality=QUALITY))
    return Pack(job.number, digest, bytes(flaws), made=True)


def make_packs(jobs: Iterable[PackJob], workers: int) -> Iterator[Pack]:
    """Makes every pack in `workers` processes (1: in this one) and yields them in order; few jobs wait in memory.

    An error or Ctrl-C ends the processes and keeps finished packs. A killed process raises `DiveError`.
    """
    if workers == 1:
        yield from map(make_pack, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        waiting: deque[Future[Pack]] = deque()
        for job in jobs:
            with _ctrl_c_kept_back():  # a submission may start a process
                waiting.append(pool.submit(make_pack, job))
            if len(waiting) > 8 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DiveError(
            "a process that made thumbnails was killed, perhaps for memory; rerun with fewer --workers: what is done is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    return min(4, os.cpu_count() or 1)


@contextmanager
def _ctrl_c_kept_back() -> Iterator[None]:
    """Delays Ctrl-C until the block ends. Processes started within inherit the blocked signal; the parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _digest(job: PackJob, flaws: list[int]) -> int:
    shown = [_VERSION, CELL, QUALITY, [[rgb[1], ir[1], flaw] for (rgb, ir), flaw in zip(job.pairs, flaws, strict=True)]]
    return int(sha256_bytes(canonical_json(shown).encode())[:8], 16)


def _draw(sheet: Image.Image, corner: tuple[int, int], path: Path, damaged: int) -> int:
    """Draws an image into its cell, whole and in proportion; returns `damaged` for an unreadable one."""
    try:
        image = ImageOps.contain(open_image(path), CELL, Image.Resampling.LANCZOS)
    except InputError:
        return damaged
    sheet.paste(image, (corner[0] + (CELL[0] - image.width) // 2, corner[1] + (CELL[1] - image.height) // 2))
    return 0


def _cross(sheet: Image.Image, corner: tuple[int, int]) -> None:
    left, top, right, bottom = corner[0] + 8, corner[1] + 8, corner[0] + CELL[0] - 9, corner[1] + CELL[1] - 9
    pen = ImageDraw.Draw(sheet)
    for line in ((left, top, right, bottom), (left, bottom, right, top)):
        pen.line(line, _CROSS, 3)
