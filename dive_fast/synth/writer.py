"""Files written beside the computation: images and photos by a few threads, a shard's record after its last file."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dive_fast.data.images import open_image
from dive_fast.data.writers import SysuTreeWriter
from dive_fast.io import atomic_write, sha256_bytes
from dive_fast.synth.clock import StageClock
from dive_fast.synth.dataset import PNG_PAIR, PNG_PLAN
from dive_fast.synth.layout import PairFiles
from dive_fast.synth.manifest import write_shard
from dive_fast.types import InputError, Modality, PairRecord, PairSpec

T = TypeVar("T")

THREADS = 2  # PNG of 512x256 takes 34 ms in RGB and 12 ms in infrared, outside the interpreter lock
WAITING = 64  # tasks at most: what a slow disk may hold back in memory


class DatasetWriter:
    """Writes into one dataset; used as a context, which waits for every file and raises the first failure.

    Queueing blocks while too many tasks wait and raises a failure of an earlier task, so that a full disk stops the
    run and not only its writing.
    """

    def __init__(self, out: Path, plan_id: str, fingerprint: str, clock: StageClock) -> None:
        self._tree = SysuTreeWriter(out)
        self._plan_id, self._fingerprint, self._clock = plan_id, fingerprint, clock
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="dive-write")
        self._room = threading.BoundedSemaphore(WAITING)
        self._failure: BaseException | None = None
        self._photos = threading.Lock()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._raise_failure()

    def image(self, image: NDArray[np.uint8], pair: PairSpec, side: Modality, name: str) -> Future[str]:
        """Queues one generated image, uint8 [H, W, 3], as lossless PNG, infrared in one channel; gives its SHA-256."""
        return self._submit(self._write_image, image, pair, side, name)

    def photo(self, source: Path, name: str) -> Future[str]:
        """Queues the byte-for-byte copy of a real photo; gives its SHA-256. One that is damaged raises `InputError`."""
        return self._submit(self._copy_photo, source, name)

    def record(
        self, number: int, pairs: Sequence[tuple[PairSpec, PairFiles]], written: Mapping[str, Future[str]]
    ) -> None:
        """Queues shard `number`'s record; `written` has the hash to come of every file of its `pairs`.

        The queue is first in, first out: when a thread takes the record, its files are written or being written, so
        waiting for them cannot lock the pool up.
        """
        self._submit(self._write_record, number, pairs, written)

    def _submit(self, task: Callable[..., T], *arguments: Any) -> Future[T]:
        self._raise_failure()
        self._room.acquire()
        future = self._pool.submit(task, *arguments)
        future.add_done_callback(self._done)
        return future

    def _done(self, future: Future[Any]) -> None:
        self._failure = self._failure or future.exception()
        self._room.release()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write_image(self, image: NDArray[np.uint8], pair: PairSpec, side: Modality, name: str) -> str:
        with self._clock("write"):
            notes = PngInfo()
            notes.add_text("dive_fast:synthetic", "1")
            notes.add_text(PNG_PLAN, self._plan_id)
            notes.add_text(PNG_PAIR, pair.pair_id)
            notes.add_text("dive_fast:fingerprint", self._fingerprint)
            picture = Image.fromarray(image)
            stream = io.BytesIO()
            (picture.convert("L") if side == "ir" else picture).save(stream, "PNG", pnginfo=notes)
            return self._write(name, stream.getvalue())

    def _copy_photo(self, source: Path, name: str) -> str:
        with self._clock("write"):
            open_image(source)
            data = source.read_bytes()
            target = self._tree.root / name
            with self._photos:  # pairs of two shards may bring the same photo at once
                if not target.exists():
                    return self._write(name, data)
            if target.read_bytes() != data:
                raise InputError(f"{target} is not the photo {source} that belongs there; move it away, then rerun")
            return sha256_bytes(data)

    def _write(self, name: str, data: bytes) -> str:
        atomic_write(self._tree.new_path(name), data)
        return sha256_bytes(data)

    def _write_record(
        self, number: int, pairs: Sequence[tuple[PairSpec, PairFiles]], written: Mapping[str, Future[str]]
    ) -> None:
        records = [
            PairRecord(
                spec=pair,
                files=dict(files.items()),
                sha256={side: written[name].result() for side, name in files.items()},
                engine_fingerprint=self._fingerprint,
                scores={},
            )
            for pair, files in pairs
        ]
        write_shard(self._tree.root, number, records)
