"""Person images, decoded once and held in memory or in a file that is mapped into it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dive_fast.data.images import open_image
from dive_fast.environment.packages import memory
from dive_fast.io import canonical_json, clear_disk_errors, lock_folder, sha256_bytes, sha256_file
from dive_fast.reid.data.augment import DEVIATION, LUMA, MEAN, AugmentConfig, augment, normalise
from dive_fast.types import MODALITIES, InputError, Sample

__all__ = [
    "DEVIATION",
    "LUMA",
    "MEAN",
    "AugmentConfig",
    "ImageSet",
    "Table",
    "augment",
    "check_samples",
    "fingerprint",
    "load_images",
    "normalise",
    "take",
]

_DECODERS = 4
_GB = 1e9


@dataclass(frozen=True)
class Table:
    """What is known of samples without opening them, row by row: `labels` int64 [N], an index into `pids` (sorted);
    `infrared` and `synthetic` bool [N].
    """

    labels: Tensor
    infrared: Tensor
    synthetic: Tensor
    pids: tuple[str, ...]

    @staticmethod
    def of(samples: Sequence[Sample]) -> Table:
        pids = tuple(sorted({s.pid for s in samples}))
        label = {pid: i for i, pid in enumerate(pids)}
        return Table(
            torch.tensor([label[s.pid] for s in samples]),
            torch.tensor([s.modality == "ir" for s in samples]),
            torch.tensor([s.source == "synthetic" for s in samples]),
            pids,
        )


@dataclass(frozen=True)
class ImageSet:
    """Decoded images and what is known of them, row by row in the order of `samples`.

    `images` uint8 [N, 3, H, W]; `labels` int64 [N], an index into `pids` (sorted); `infrared` and `synthetic` bool [N].
    """

    samples: tuple[Sample, ...]
    images: Tensor
    labels: Tensor
    infrared: Tensor
    synthetic: Tensor
    pids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)


def take(images: ImageSet, rows: Sequence[int]) -> ImageSet:
    """Some images of a set as one of their own, copied; its labels count its own people."""
    samples = tuple(images.samples[row] for row in rows)
    table = Table.of(samples)
    return replace(images, samples=samples, images=images.images[list(rows)], **vars(table))


def load_images(
    samples: Sequence[Sample], height: int, width: int, *, progress: str | None = None, cache: Path | None = None
) -> ImageSet:
    """Decodes and resizes `samples` to `height` x `width`; `progress` names a progress bar.

    With `cache`, a folder, the images lie in a file there, made once and mapped into memory: sets that memory cannot hold,
    and several processes that share one copy. Raises `InputError` for an empty list, a file that is listed twice, one that
    is missing or broken, and images that free memory cannot hold.
    """
    what = progress or "images"
    check_samples(samples, what)
    if cache is not None:
        images = _cached(samples, height, width, cache, progress)
    else:
        _check_memory(len(samples), height, width, what)
        images = np.empty((len(samples), 3, height, width), np.uint8)
        _decode(samples, range(len(samples)), images, progress)
    return ImageSet(tuple(samples), torch.from_numpy(images), **vars(Table.of(samples)))


def _decode(
    samples: Sequence[Sample],
    rows: Sequence[int],
    images: NDArray[np.uint8],
    progress: str | None,
    done: NDArray[np.bool_] | None = None,
) -> None:
    """Fills `rows` of `images` [N, 3, H, W], and says so in `done`."""
    height, width = images.shape[2:]

    def decode(row: int) -> None:
        photo = open_image(samples[row].path)
        if photo.size != (width, height):
            photo = photo.resize((width, height), Image.Resampling.BILINEAR)
        images[row] = np.asarray(photo, dtype=np.uint8).transpose(2, 0, 1)
        if done is not None:
            done[row] = True

    with ThreadPoolExecutor(_DECODERS) as pool:
        bar = tqdm(rows, desc=progress, unit="image", disable=progress is None, leave=False)
        for _ in pool.map(decode, bar):
            pass


def _check_memory(count: int, height: int, width: int, what: str) -> None:
    needed, free = count * 3 * height * width, _free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"{what}: {count:,} images of {height}x{width} take {needed / _GB:.1f} GB of memory and {free / _GB:.1f} GB are "
            "free; give a folder for a file of them (reid train --cache), or make the images smaller"
        )


def _free_memory() -> int | None:
    """Bytes that can be taken without swapping, where the system tells (Linux)."""
    found = memory()
    return None if found is None else found[1]


def _cached(samples: Sequence[Sample], height: int, width: int, cache: Path, progress: str | None) -> NDArray[np.uint8]:
    """The images as a file in `cache`, named by what they hold; one that a kill left half made is completed."""
    shape = (len(samples), 3, height, width)
    name = sha256_bytes(f"{fingerprint(samples)} {height}x{width}".encode())[:16]
    path = cache / f"images-{name}.u8"
    size = int(np.prod(shape))
    if not path.is_file():
        with clear_disk_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
            partial, marks = cache / f".{path.name}.partial", cache / f".{path.name}.done"
            with open(cache / f".{path.name}.lock", "w", encoding="utf-8") as lock:
                lock_folder(lock, cache)
                for file, length in ((partial, size), (marks, len(samples))):
                    _reserve(file, length)
                images, done = np.memmap(partial, np.uint8, "r+", shape=shape), np.memmap(marks, np.bool_, "r+")
                _decode(samples, np.flatnonzero(~done).tolist(), images, progress, done)
                images.flush()
                os.replace(partial, path)
                marks.unlink()
    elif path.stat().st_size != size:
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes, expected {size:,}; delete it to have it made again"
        )
    # Mode "c": torch warns of memory that it cannot write to, and what is written must not reach the file.
    return np.asarray(np.memmap(path, np.uint8, "c", shape=shape))


def _reserve(file: Path, size: int) -> None:
    """Makes `file` `size` bytes long, the new ones 0, and takes the room: a mapped file that finds none ends the process."""
    with open(file, "a+b") as stream:
        if hasattr(os, "posix_fallocate") and size > os.fstat(stream.fileno()).st_size:
            os.posix_fallocate(stream.fileno(), 0, size)
        stream.truncate(size)


def check_samples(samples: Sequence[Sample], what: str) -> None:
    """Raises `InputError` for no samples, unknown modalities and files that are listed twice, however they are spelt."""
    if not samples:
        raise InputError(f"{what}: no samples; the list is empty")
    wrong = next((s for s in samples if s.modality not in MODALITIES), None)
    if wrong:
        raise InputError(f"{what}: {wrong.path} has modality {wrong.modality!r}; use one of {MODALITIES}")
    twice = [path for path, count in Counter(os.path.abspath(s.path) for s in samples).items() if count > 1]
    if twice:
        raise InputError(f"{what}: {len(twice)} file(s) are listed more than once, first {min(twice)}")


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of what the images hold and how they are labelled, wherever the files lie."""
    try:
        rows = [[s.pid, s.camera, s.modality, s.source, sha256_file(s.path)] for s in samples]
    except OSError as error:
        raise InputError(f"image {error.filename} cannot be read ({error.strerror}); check the data folder") from error
    return sha256_bytes(canonical_json(rows).encode())
