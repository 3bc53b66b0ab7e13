"""Person images, decoded once and held in memory or in a file mapped into it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dive_fast.data.images import open_image
from dive_fast.environment.packages import memory
from dive_fast.io import canonical_json, clear_disk_errors, locked, sha256_bytes, sha256_file
from dive_fast.progress import ProgressBar
from dive_fast.types import MODALITIES, InputError, Sample

_DECODERS = 4
_GB = 1e9


@dataclass(frozen=True)
class Table:
    """What samples say without being opened, row by row: `labels` int64 [N], an index into `pids` (sorted); `infrared` and
    `synthetic` bool [N].
    """

    labels: Tensor
    infrared: Tensor
    synthetic: Tensor
    pids: tuple[str, ...]

    @staticmethod
    def from_samples(samples: Sequence[Sample]) -> Table:
        pids = tuple(sorted({s.pid for s in samples}))
        label = {pid: i for i, pid in enumerate(pids)}
        return Table(
            torch.tensor([label[s.pid] for s in samples]),
            torch.tensor([s.modality == "ir" for s in samples]),
            torch.tensor([s.source == "synthetic" for s in samples]),
            pids,
        )


@dataclass(frozen=True)
class ImageSet(Table):
    """A `Table` with its `samples` and their decoded images, uint8 [N, 3, H, W]."""

    samples: tuple[Sample, ...]
    images: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: Sequence[int]) -> ImageSet:
        """Returns some images as a set, copied; its labels count its own identities."""
        return _image_set([self.samples[row] for row in rows], self.images[list(rows)])


def _image_set(samples: Sequence[Sample], images: Tensor) -> ImageSet:
    return ImageSet(**vars(Table.from_samples(samples)), samples=tuple(samples), images=images)


def load_images(
    samples: Sequence[Sample], height: int, width: int, *, progress: str | None = None, cache: Path | None = None
) -> ImageSet:
    """Decodes and resizes `samples` to `height` x `width`; `progress` names a progress bar.

    With `cache`, a folder, a file there holds the images, written once and mapped into memory: for sets larger than memory,
    and for processes that share one copy. Raises `InputError` for an empty list, a file that is listed twice, missing or
    broken, and images that exceed free memory.
    """
    what = progress or "images"
    check_samples(samples, what)
    if cache is not None:
        images = _cached(samples, height, width, cache, progress)
    else:
        count, found = len(samples), memory()
        needed = count * 3 * height * width
        if found is not None and needed > found[1]:
            have = f"need {needed / _GB:.1f} of {found[1] / _GB:.1f} GB"
            raise InputError(f"{what}: {count:,} images of {height}x{width} {have}; give --cache")
        images = np.empty((len(samples), 3, height, width), np.uint8)
        _decode(samples, range(len(samples)), images, progress)
    return _image_set(samples, torch.from_numpy(images))


def image_chunks(
    samples: Sequence[Sample], height: int, width: int, most: int, progress: str | None = None
) -> Iterator[ImageSet]:
    """Yields the decoded `samples`, at most `most` at a time; a thread decodes each chunk while its predecessor is used."""
    chunks = [samples[start : start + most] for start in range(0, len(samples), most)]
    bar = ProgressBar(total=len(samples), desc=progress, unit="image", disable=progress is None, leave=False)
    with bar, ThreadPoolExecutor(1) as decoder:
        ahead = decoder.submit(load_images, chunks[0], height, width)
        for number in range(len(chunks)):
            images = ahead.result()
            if number + 1 < len(chunks):
                ahead = decoder.submit(load_images, chunks[number + 1], height, width)
            yield images
            bar.update(len(images))


def _decode(
    samples: Sequence[Sample],
    rows: Sequence[int],
    images: NDArray[np.uint8],
    progress: str | None,
    done: NDArray[np.bool_] | None = None,
) -> None:
    """Fills `rows` of `images` [N, 3, H, W] and marks them in `done`."""
    height, width = images.shape[2:]

    def decode(row: int) -> None:
        photo = open_image(samples[row].path)
        if photo.size != (width, height):
            photo = photo.resize((width, height), Image.Resampling.BILINEAR)
        images[row] = np.asarray(photo, dtype=np.uint8).transpose(2, 0, 1)
        if done is not None:
            done[row] = True

    with ThreadPoolExecutor(_DECODERS) as pool:
        bar = ProgressBar(rows, desc=progress, unit="image", disable=progress is None, leave=False)
        for _ in pool.map(decode, bar):
            pass


def _cached(samples: Sequence[Sample], height: int, width: int, cache: Path, progress: str | None) -> NDArray[np.uint8]:
    """The images as a file in `cache`, named by its content; an interrupted one is completed."""
    shape = (len(samples), 3, height, width)
    name = sha256_bytes(f"{fingerprint(samples)} {height}x{width}".encode())[:16]
    path = cache / f"images-{name}.u8"
    size = int(np.prod(shape))
    if not path.is_file():
        with clear_disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            partial, flags = cache / f".{path.name}.partial", cache / f".{path.name}.done"
            with locked(cache / f".{path.name}.lock", cache):
                for file, length in ((partial, size), (flags, len(samples))):
                    _reserve(file, length)
                images, done = np.memmap(partial, np.uint8, "r+", shape=shape), np.memmap(flags, np.bool_, "r+")
                _decode(samples, np.flatnonzero(~done).tolist(), images, progress, done)
                images.flush()
                os.replace(partial, path)
                flags.unlink()
    elif path.stat().st_size != size:
        raise InputError(f"{path} has {path.stat().st_size:,} bytes, expected {size:,}; delete it and rerun")
    # Mode "c": torch warns about read-only memory, and writes must not reach the file.
    return np.asarray(np.memmap(path, np.uint8, "c", shape=shape))


def _reserve(file: Path, size: int) -> None:
    """Makes `file` `size` bytes long, new ones 0, and allocates the disk space: a full disk kills a process that maps it."""
    with open(file, "a+b") as stream:
        if hasattr(os, "posix_fallocate") and size > os.fstat(stream.fileno()).st_size:
            os.posix_fallocate(stream.fileno(), 0, size)
        stream.truncate(size)


def check_samples(samples: Sequence[Sample], what: str) -> None:
    """Raises `InputError` for no samples, unknown modalities and files that are listed twice, in any spelling."""
    if not samples:
        raise InputError(f"{what}: no samples; the list is empty")
    wrong = next((s for s in samples if s.modality not in MODALITIES), None)
    if wrong:
        raise InputError(f"{what}: {wrong.path} has modality {wrong.modality!r}; use one of {MODALITIES}")
    twice = [path for path, count in Counter(os.path.abspath(s.path) for s in samples).items() if count > 1]
    if twice:
        raise InputError(f"{what}: {len(twice)} file(s) are listed more than once, first {min(twice)}")


def fingerprint(samples: Sequence[Sample]) -> str:
    """Returns a hash of the images' content and labels, independent of the files' places."""
    rows = [[s.pid, s.camera, s.modality, s.source, sha256_file(s.path)] for s in samples]
    return sha256_bytes(canonical_json(rows).encode())
