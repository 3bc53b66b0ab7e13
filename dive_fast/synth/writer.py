"""A dataset's files, written by threads beside the computation; a shard's record follows its last file."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dive_fast.data.images import decode_image, read_image_file
from dive_fast.data.names import abbreviate
from dive_fast.io import sha256_bytes
from dive_fast.synth.clock import StageClock
from dive_fast.synth.layout import PairFiles
from dive_fast.synth.manifest import shard_lines, shard_name
from dive_fast.synth.planfile import ImageFormat, SynthesisPlan
from dive_fast.synth.provenance import jpeg_tags, png_tags
from dive_fast.synth.store import Store
from dive_fast.types import DiveError, InputError, Modality, PairRecord, PairSpec

T = TypeVar("T")

# PNG of 512x256 takes 34 ms in RGB and 12 ms in infrared, outside the interpreter lock.
THREADS = min(4, os.cpu_count() or 1)
WAITING = 256 << 20  # bytes of images at most that a slow disk keeps in memory: several batches
WAITING_TASKS = 64  # of the largest images
JPEG_QUALITY = 95


@dataclass(frozen=True)
class Written:
    """A file as it was written."""

    sha256: str
    size: int


def require_photos(plan: SynthesisPlan) -> None:
    """Raises `DiveError` for a photo folder that is gone or empty, as that of a disk that is not mounted."""
    if not os.path.isdir(str(plan.photo_root)) or not os.listdir(str(plan.photo_root)):
        raise DiveError(
            f"the photo folder {plan.photo_root} is gone or empty; bring it back, then rerun: finished work is kept"
        )


def encoded(picture: Image.Image, image_format: ImageFormat, notes: Mapping[str, str]) -> bytes:
    """Returns the file of a generated image with its provenance tags."""
    stream = io.BytesIO()
    if image_format == "png":
        picture.save(stream, "PNG", pnginfo=png_tags(notes))
    else:
        picture.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0, exif=jpeg_tags(notes))
    return stream.getvalue()


class DatasetWriter:
    """Writes into one dataset; used as a context, which waits for every file and raises the first failure.

    Queueing blocks while too many tasks wait, and raises the failure of an earlier task: a full disk stops the run.
    """

    def __init__(self, store: Store, plan: SynthesisPlan, fingerprint: str, clock: StageClock) -> None:
        self._store, self._plan, self._fingerprint, self._clock = store, plan, fingerprint, clock
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="dive-write")
        self._room = threading.BoundedSemaphore(max(WAITING_TASKS, WAITING // (3 * plan.height * plan.width)))
        self._failure: BaseException | None = None
        self._photos = threading.Lock()
        self.lost: dict[str, str] = {}  # photos that cannot be read, each with the reason
        self.rejected = 0  # pairs that are recorded without images, as their photo is lost

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._raise_failure()

    def image(
        self, image: NDArray[np.uint8], pair: PairSpec, side: Modality, name: str, shard: int
    ) -> Future[Written | None]:
        """Queues one generated image, uint8 [H, W, 3]; infrared is written in one channel. An image of one single colour
        raises `DiveError`.
        """

        @self._clock("write")
        def write() -> Written:
            picture = Image.fromarray(image)
            picture = picture.convert("L") if side == "ir" else picture
            if all(band.getextrema()[0] == band.getextrema()[1] for band in picture.split()):
                raise DiveError(
                    f"pair {abbreviate([pair.pair_id])}: the engine gave an image of one single colour, so nothing of this "
                    "shard is recorded; use float32, or check the model"
                )
            notes = {"plan_id": self._plan.plan_id, "pair_id": pair.pair_id, "fingerprint": self._fingerprint}
            notes |= {"virtual": "1"} if pair.virtual else {}
            return self._write(name, encoded(picture, self._plan.image_format, notes), shard)

        return self._submit(write)

    def photo(self, source: Path, name: str, shard: int) -> Future[Written | None]:
        """Queues the byte-for-byte copy of a real photo; None for one that is missing or damaged, see `lost`.

        An empty photo folder raises `DiveError`: the next photos would be lost, too.
        """

        @self._clock("write")
        def copy() -> Written | None:
            try:
                data = read_image_file(source, str(source))
                decode_image(data, str(source))
            except InputError as error:
                require_photos(self._plan)
                self.lost[str(source)] = str(error)
                return None
            with self._photos:  # pairs of two shards may bring the same photo at once
                if self._store.size(name) is None:
                    return self._write(name, data, shard)
            if self._store.read(name) != data:
                raise InputError(
                    f"{name} in {self._store.where} is not the photo {source} that belongs there; move it away, then rerun"
                )
            return Written(sha256_bytes(data), len(data))

        return self._submit(copy)

    def record(
        self,
        number: int,
        pairs: Sequence[tuple[PairSpec, PairFiles]],
        written: Mapping[str, Future[Written | None]],
        done: Callable[[], object],
    ) -> None:
        """Queues shard `number`'s record, which needs `written` for every file of its `pairs`; calls `done` after it.

        A pair with None for a file is recorded as rejected, without hashes.

        The queue is first in, first out: when a thread takes the record, its files are written or being written, so
        waiting for them cannot deadlock.
        """

        def write() -> None:
            records = []
            for pair, files in pairs:
                names = {str(side): name for side, name in files.items()}
                records.append(self._pair(pair, names, {side: written[name].result() for side, name in names.items()}))
            self._store.write(shard_name(number), shard_lines(records), number)
            self.rejected += sum(record.status == "rejected" for record in records)
            done()

        self._submit(write)

    def _pair(self, pair: PairSpec, names: dict[str, str], parts: Mapping[str, Written | None]) -> PairRecord:
        whole = {side: part for side, part in parts.items() if part is not None}
        if len(whole) < len(parts):
            return PairRecord(
                pair, names, dict.fromkeys(names, ""), dict.fromkeys(names, 0), self._fingerprint, {}, "rejected"
            )
        hashes = {side: part.sha256 for side, part in whole.items()}
        sizes = {side: part.size for side, part in whole.items()}
        return PairRecord(pair, names, hashes, sizes, self._fingerprint, {})

    def _submit(self, task: Callable[[], T]) -> Future[T]:
        self._raise_failure()
        self._room.acquire()
        future = self._pool.submit(task)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        self._failure = self._failure or future.exception()
        self._room.release()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write(self, name: str, data: bytes, shard: int) -> Written:
        self._store.write(name, data, shard)
        return Written(sha256_bytes(data), len(data))
