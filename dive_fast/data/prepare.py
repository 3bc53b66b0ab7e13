"""Writing a prepared set: images verified and packed shard by shard, safe to kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from dive_fast.data.config import PrepareConfig
from dive_fast.data.counts import Count, count_sets
from dive_fast.data.filters import Dropped
from dive_fast.data.prepared import (
    FORMAT,
    LatentFile,
    ShardHashes,
    latents_path,
    latents_record_path,
    read_latents_record,
)
from dive_fast.data.sets import NamedSet, settings_of
from dive_fast.data.shards import (
    DamagedImage,
    PackedImage,
    PackedShard,
    SourceImage,
    index_path,
    pack_shard,
    read_shard,
    shard_bytes,
    tar_path,
)
from dive_fast.io import canonical_json, sha256_bytes, sha256_file, write_json
from dive_fast.outputs import claim_folder
from dive_fast.types import DiveError, InputError
from dive_fast.words import size


@dataclass(frozen=True)
class PreparePlan:
    """Everything that decides what a prepared set holds: the filtered `sets`, and the counts `read` before."""

    sets: tuple[NamedSet, ...]
    read: tuple[Count, ...]
    config: PrepareConfig
    dropped: tuple[Dropped, ...]

    def __post_init__(self) -> None:
        if not any(named.samples for named in self.sets):
            raise InputError("no image is left to prepare; loosen the filters")

    @cached_property
    def images(self) -> list[SourceImage]:
        """Every image in order, numbered from 0."""
        pairs = ((named, sample) for named in self.sets for sample in named.samples)
        return [SourceImage(s, named.name, named.file_name(s), i) for i, (named, s) in enumerate(pairs)]

    @property
    def shards(self) -> int:
        return -(-len(self.images) // self.config.shard_size)

    def shard(self, number: int) -> list[SourceImage]:
        return self.images[number * self.config.shard_size : (number + 1) * self.config.shard_size]

    @cached_property
    def settings(self) -> list[dict[str, Any]]:
        """The sets without their roots, which may differ from machine to machine."""
        return [{"name": named.name, **settings_of(named.spec)} for named in self.sets]

    @cached_property
    def id(self) -> str:
        """Hash of sets, filters and every image's name and person; not of the bytes, which a repair may change."""
        rows = [[i.name, i.sample.pid, i.sample.camera, i.sample.modality] for i in self.images]
        return sha256_bytes(canonical_json([self.settings, self.config.filters, self.config.shard_size, rows]).encode())


def claimed(out: Path, plan: PreparePlan) -> AbstractContextManager[None]:
    """Makes `out` the folder of `plan` and locks it while the block runs, see `claim_folder`."""
    content = {"format": FORMAT, "id": plan.id}
    return claim_folder(out, "plan.json", content, "prepared set", (named.spec.root for named in plan.sets))


def finished_shards(out: Path, plan: PreparePlan) -> set[int]:
    """The shards that need no packing: index and tar exist, and no source's size has changed since.

    With `config.strict`, a shard that left images out counts as unfinished.
    """
    return {number for number in range(plan.shards) if _is_finished(out, plan, number)}


def space_needed(plan: PreparePlan, finished: set[int]) -> int:
    """Upper bound of the bytes that the unfinished shards will take."""
    todo = [number for number in range(plan.shards) if number not in finished]
    return sum(shard_bytes([_size(image) for image in plan.shard(number)]) for number in todo)


def check_space(out: Path, needed: int) -> None:
    """Raises `DiveError` when the disk of `out` has fewer free bytes than `needed`."""
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DiveError(
            f"{out} needs {size(needed)}, the disk has {size(free)} free; free space or choose another --out"
        )


def pack(plan: PreparePlan, out: Path, finished: set[int], progress: Callable[[int], object]) -> None:
    """Packs every unfinished shard and calls `progress` for each image. Only inside `claimed`."""
    if len(finished) < plan.shards:
        (out / "prepared.json").unlink(missing_ok=True)  # it would speak of other shards than these
    for number in range(plan.shards):
        if number not in finished:
            pack_shard(out, number, plan.shard(number), plan.config.strict, progress)


def finish(plan: PreparePlan, out: Path) -> None:
    """Writes `prepared.json`, which marks the set as complete. Only inside `claimed`."""
    shards = [read_shard(out, number) for number in range(plan.shards)]
    damaged = [image for shard in shards for image in shard.damaged]
    gone = {(image.set, image.path) for image in damaged}
    sets = [
        named.with_samples([s for s in named.samples if (named.name, named.file_name(s)) not in gone])
        for named in plan.sets
    ]
    report = {
        "format": FORMAT,
        "id": plan.id,
        "sets": plan.settings,
        "filters": plan.config.filters,
        "images": sum(len(shard.images) for shard in shards),
        "identities": len({image.pid for shard in shards for image in shard.images}),
        "read": [asdict(row) for row in plan.read],
        "dropped": [asdict(record) for record in plan.dropped],
        "damaged": [asdict(image) for image in damaged],
        "duplicates": _duplicates(shards),
        "prepared": [asdict(row) for row in count_sets(sets)],
        "shards": [
            asdict(ShardHashes(len(shard.images), shard.bytes, shard.sha256, sha256_file(index_path(out, number))))
            for number, shard in enumerate(shards)
        ],
        "latents": [asdict(record) for record in _latents(out, shards)],
    }
    write_json(out / "prepared.json", report)


def _is_finished(out: Path, plan: PreparePlan, number: int) -> bool:
    if not (index_path(out, number).is_file() and tar_path(out, number).is_file()):
        return False
    shard = read_shard(out, number)
    known: list[PackedImage | DamagedImage] = [*shard.images, *shard.damaged]
    sizes = {(image.set, image.path): image.bytes for image in known}
    return (
        tar_path(out, number).stat().st_size == shard.bytes
        and not (plan.config.strict and shard.damaged)
        and all(sizes.get((image.set, image.path)) == _size(image) for image in plan.shard(number))
    )


def _size(image: SourceImage) -> int:
    """Bytes of an image's file; -1 for a missing one, which packing reports."""
    try:
        return image.sample.path.stat().st_size
    except OSError:
        return -1


def _duplicates(shards: Sequence[PackedShard]) -> list[list[str]]:
    """Groups of byte-identical images, by name."""
    names: dict[str, list[str]] = {}
    for image in chain.from_iterable(shard.images for shard in shards):
        names.setdefault(image.sha256, []).append(f"{image.set}/{image.path}")
    return [same for same in names.values() if len(same) > 1]


def _latents(out: Path, shards: Sequence[PackedShard]) -> list[LatentFile]:
    """The records of all latents; none unless every shard has its own, of these very images and by one encoder."""
    records = []
    for number, shard in enumerate(shards):
        if not (latents_record_path(out, number).is_file() and latents_path(out, number).is_file()):
            return []
        records.append(read_latents_record(out, number))
        if records[-1].tar != shard.sha256:
            return []
    return records if len({record.encoder for record in records}) == 1 else []
