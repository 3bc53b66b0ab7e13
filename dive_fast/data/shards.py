"""One shard of a prepared set: images in a WebDataset tar, and an index that is written last.

The tar holds two members an image: KEY.jpg (or the file's own suffix) with the original bytes, and KEY.json. The index
holds each image's offset, for random access; webdataset's own writer does not give offsets. Equal inputs give equal bytes.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dive_fast.data.images import decode_image, read_image_file
from dive_fast.io import atomic_path, atomic_write, canonical_json, clear_disk_errors, sha256_bytes, sha256_file
from dive_fast.json_files import read_json
from dive_fast.settings import NonNegativeInt, type_hints, violation
from dive_fast.types import InputError, Modality, R, Sample, from_dict, to_dict

_BLOCK = 512
_INFO = ("pid", "camera", "modality", "set", "path", "sha256")


@dataclass(frozen=True)
class SourceImage:
    """An image to pack: its sample, its set's name, its file relative to the set, and its number in the whole."""

    sample: Sample
    set: str
    path: str
    number: int

    @property
    def name(self) -> str:
        """Its name in reports: SET/FILE."""
        return f"{self.set}/{self.path}"


@dataclass(frozen=True)
class PackedImage:
    """An image in a tar: member `file`, its `bytes` from `offset` on; `path` is its file in its set."""

    file: str
    pid: str
    camera: str
    modality: Modality
    set: str
    path: str
    sha256: str
    bytes: NonNegativeInt
    offset: NonNegativeInt

    def sample(self) -> Sample:
        """As the raw tree's sample, with path SET/FILE, which is the same on every machine."""
        return Sample(Path(self.set) / self.path, self.pid, self.camera, modality=self.modality)


@dataclass(frozen=True)
class DamagedImage:
    """An image that was left out, its problem, and how many bytes of it could be read."""

    set: str
    path: str
    bytes: NonNegativeInt
    problem: str


@dataclass(frozen=True)
class PackedShard:
    """A finished shard's index."""

    bytes: NonNegativeInt
    sha256: str
    images: tuple[PackedImage, ...]
    damaged: tuple[DamagedImage, ...]


def tar_path(out: Path, number: int) -> Path:
    return out / "shards" / f"{number:05d}.tar"


def index_path(out: Path, number: int) -> Path:
    return tar_path(out, number).with_suffix(".json")


def pack_shard(
    out: Path, number: int, sources: Sequence[SourceImage], strict: bool, progress: Callable[[int], object]
) -> PackedShard:
    """Writes shard `number` of `out`, one image in memory at a time, each verified by decoding it whole.

    Damaged images are left out and recorded; with `strict` they raise `InputError`. `progress` is called for each image.
    """
    images: list[PackedImage] = []
    damaged: list[DamagedImage] = []
    with clear_disk_errors(out):
        index_path(out, number).unlink(missing_ok=True)  # an older tar's
    with atomic_path(tar_path(out, number)) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for source in sources:
                data = b""
                try:
                    data = read_image_file(source.sample.path, source.name)
                    decode_image(data, source.name)
                except InputError as error:
                    if strict:
                        raise
                    damaged.append(DamagedImage(source.set, source.path, len(data), str(error)))
                else:
                    images.append(_packed(source, data, tar.offset + _BLOCK))
                    _add(tar, images[-1].file, data)
                    info = {name: getattr(images[-1], name) for name in _INFO}
                    _add(tar, f"{source.number:08d}.json", canonical_json(info).encode())
                progress(1)
        shard = PackedShard(temporary.stat().st_size, sha256_file(temporary), tuple(images), tuple(damaged))
    atomic_write(index_path(out, number), canonical_json(to_dict(shard)) + "\n")
    return shard


def read_shard(out: Path, number: int) -> PackedShard:
    """The index of a finished shard; a missing or malformed one raises `InputError`."""
    path = index_path(out, number)
    data = read_json(path, "prepared shard")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), list) for name in ("images", "damaged")):
        raise InputError(f"prepared shard: {path} is no shard's index; delete it and run dive-fast prepare again")
    images = tuple(typed(PackedImage, row, path) for row in data["images"])
    damaged = tuple(typed(DamagedImage, row, path) for row in data["damaged"])
    return typed(PackedShard, {**data, "images": images, "damaged": damaged}, path)


def typed(cls: type[R], row: object, path: Path) -> R:
    """A record of a prepared set's file `path`; a field of another type raises `InputError`."""
    record = from_dict(cls, row, str(path))
    reasons = {name: violation(hint, getattr(record, name)) for name, hint in type_hints(cls).items()}  # type: ignore[arg-type]
    broken = [f"{name} {reason}" for name, reason in reasons.items() if reason]
    if broken:
        raise InputError(f"{path}: {'; '.join(broken)}; delete it and run dive-fast prepare again")
    return record


def image_bytes(stream: BinaryIO, image: PackedImage, where: Path) -> bytes:
    """The original bytes of one image from its open tar `where`; other bytes raise `InputError`."""
    stream.seek(image.offset)
    data = stream.read(image.bytes)
    if sha256_bytes(data) != image.sha256:
        raise InputError(f"{where}: {image.file} is damaged; delete the tar and run dive-fast prepare again")
    return data


def shard_bytes(sizes: Sequence[int]) -> int:
    """Upper bound of the bytes of a tar of images of these sizes and its index."""
    return tarfile.RECORDSIZE + sum(6 * _BLOCK + size + 1_024 for size in sizes)


def _packed(source: SourceImage, data: bytes, offset: int) -> PackedImage:
    sample = source.sample
    file, sha256 = f"{source.number:08d}{sample.path.suffix.lower()}", sha256_bytes(data)
    person = sample.pid, sample.camera, sample.modality
    return PackedImage(file, *person, source.set, source.path, sha256, len(data), offset)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a member without time or owner: equal inputs give equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
