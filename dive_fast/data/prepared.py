"""A prepared set on disk: opened, checked, and read without the raw trees.

- `plan.json`, written first, identifies the set
- `shards/00000.tar` ...: images; each tar's index `00000.json` is written after it
- `latents/00000.safetensors` ..., optional: latents of the shard's images; each has a record `00000.json`
- `prepared.json`, the report, written last
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dive_fast.data.images import decode_image
from dive_fast.data.shards import PackedImage, image_bytes, index_path, read_shard, tar_path, typed
from dive_fast.io import sha256_file
from dive_fast.json_files import read_json
from dive_fast.settings import NonNegativeInt, PositiveInt, violation
from dive_fast.types import InputError, Sample, shown

FORMAT = 1


@dataclass(frozen=True)
class ShardHashes:
    """What `prepared.json` says of one shard: its images, and the hashes of its tar and its index."""

    images: NonNegativeInt
    bytes: NonNegativeInt
    tar: str
    index: str


@dataclass(frozen=True)
class LatentFile:
    """`latents/NNNNN.json`: size and hash of latents float32 [N, *shape], their encoder, and their tar's hash."""

    bytes: NonNegativeInt
    sha256: str
    encoder: str
    shape: list[int]
    tar: str


@dataclass(frozen=True)
class Prepared:
    """An opened prepared set; `report` is all of `prepared.json`."""

    folder: Path
    shards: tuple[ShardHashes, ...]
    latents: tuple[LatentFile, ...]  # one a shard, or none at all
    report: dict[str, Any]


def latents_path(out: Path, number: int) -> Path:
    return out / "latents" / f"{number:05d}.safetensors"


def latents_record_path(out: Path, number: int) -> Path:
    return latents_path(out, number).with_suffix(".json")


def read_latents_record(out: Path, number: int) -> LatentFile:
    """The record of a finished file of latents; a missing or malformed one raises `InputError`."""
    path = latents_record_path(out, number)
    return _latent_file(read_json(path, "latents"), path)


def _latent_file(row: object, path: Path) -> LatentFile:
    record = typed(LatentFile, row, path)
    if not record.shape or any(violation(PositiveInt, size) for size in record.shape):
        raise InputError(
            f"{path}: shape must be a list of sizes, got {shown(record.shape)}; run dive-fast prepare again"
        )
    return record


def open_prepared(folder: Path | str) -> Prepared:
    """The prepared set in `folder`; one that is not finished, or not ours, raises `InputError`."""
    folder = Path(folder)
    path = folder / "prepared.json"
    if not path.is_file():
        begun = (folder / "plan.json").is_file()
        state = "is not finished" if begun else "is no prepared set (it has no prepared.json)"
        raise InputError(f"{folder} {state}; run dive-fast prepare --out {folder}")
    report = read_json(path, "prepared set")
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise InputError(f"prepared set: {path} is of another version than {FORMAT}; prepare the set again")
    rows, latents = report.get("shards"), report.get("latents")
    if not isinstance(rows, list) or not isinstance(latents, list):
        raise InputError(f"prepared set: {path} lists no shards; delete it and run dive-fast prepare again")
    hashes = tuple(typed(ShardHashes, row, path) for row in rows)
    return Prepared(folder, hashes, tuple(_latent_file(row, path) for row in latents), report)


def packed_images(prepared: Prepared, number: int) -> tuple[PackedImage, ...]:
    """The index of one shard; a changed or missing one raises `InputError`."""
    path = index_path(prepared.folder, number)
    if not path.is_file():
        raise InputError(f"{path} is missing; run dive-fast prepare again")
    if sha256_file(path) != prepared.shards[number].index:
        raise InputError(f"{path} is damaged; delete it and run dive-fast prepare again")
    return read_shard(prepared.folder, number).images


def prepared_images(prepared: Prepared) -> Iterator[tuple[Sample, Image.Image]]:
    """Every image as RGB with its sample, one at a time, from the tars; a missing or damaged tar raises `InputError`."""
    for number in range(len(prepared.shards)):
        path = tar_path(prepared.folder, number)
        if not path.is_file():
            raise InputError(f"{path} is missing; run dive-fast prepare again")
        images = packed_images(prepared, number)
        with path.open("rb") as stream:
            for image in images:
                data = image_bytes(stream, image, path)
                yield image.sample(), decode_image(data, f"{image.set}/{image.path}")
