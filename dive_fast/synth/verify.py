"""Whether a dataset is what its plan says: every record its files, every file its record; and what to make anew."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path, PurePosixPath

import numpy as np

from dive_fast.synth.folder import open_store, store_plan
from dive_fast.synth.layout import IdentityFiles, shard_pairs
from dive_fast.synth.manifest import SHARD, parse_shard, shard_name
from dive_fast.synth.planfile import IdentityPlan, SynthesisPlan
from dive_fast.synth.provenance import content_hash
from dive_fast.synth.store import Store
from dive_fast.types import MODALITIES, InputError, Modality, PairRecord

SHOWN = 1000  # problems listed; more are counted
READERS = 4  # files read and hashed at once
OWN = ("plan.json", "README.md", "dropped.jsonl", "filter.json")


@dataclass
class Health:
    """What `verify` found.

    `problems` are sentences, the first `SHOWN` of `found`. `damaged` are shards whose record is unreadable or wrong;
    `files` are images and photos to make or copy again. `incomplete` has the identities that lack images of a modality,
    with (made, planned) images of each. `rejected` counts the pairs without images, whose photo could not be read; their
    shards are among the damaged.
    """

    pairs: int
    recorded: int = 0
    found: int = 0
    rejected: int = 0
    problems: list[str] = field(default_factory=list)
    damaged: set[int] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    incomplete: dict[str, dict[Modality, tuple[int, int]]] = field(default_factory=dict)

    def add(self, problem: str, shard: int | None = None, file: str | None = None) -> None:
        self.found += 1
        if len(self.problems) < SHOWN:
            self.problems.append(problem)
        if shard is not None:
            self.damaged.add(shard)
        if file is not None:
            self.files.append(file)

    @property
    def whole(self) -> bool:
        return not self.found


def verify(store: Store, plan: SynthesisPlan, advance: Callable[[int], object] = lambda pairs: None) -> Health:
    """Reads every record and every file; calls `advance` with the number of pairs checked.

    Finds shards that are missing, unreadable or not as planned; files that are missing or changed; generated images with
    the same pixels; files in no record; identities that lack images of a modality.
    """
    health = Health(len(plan.pairs))
    pixels = array("Q")  # of each generated image, 8 bytes of a hash: ten million names would not fit
    there: Counter[str] = Counter()
    unmade = 0
    with ThreadPoolExecutor(READERS, thread_name_prefix="dive-verify") as readers:
        for number in range(plan.shards):
            planned = shard_pairs(plan, number)
            records = _records(store, plan, number, health)
            if records is None:
                unmade += len(planned)
            for record in records or ():
                health.recorded += 1
                there[record.spec.pid] += not record.lost
            kept = [record for record in records or () if not record.lost]
            if records and len(kept) < len(records):
                health.rejected += len(records) - len(kept)
                health.damaged.add(number)
            recorded = {
                record.files[side]: (record.sizes[side], record.sha256[side]) for record in kept for side in MODALITIES
            }
            made = {record.files[side] for record in kept for side in plan.sides}
            for name, size, digest, content in _read_all(store, readers, list(recorded), made):
                if size is None:
                    health.add(f"{name} is missing; run synth again with --check", number)
                elif (size, digest) != recorded[name]:
                    health.add(f"{name} was changed after it was made; run synth again with --check", number, name)
                elif content is not None:
                    pixels.frombytes(content)
                elif name in made:
                    health.add(f"{name} is no image; run synth again with --check", number, name)
            advance(len(planned))
    if unmade:
        health.add(f"{unmade:,} planned pairs are not made yet; run synth again")
    twice = _duplicates(pixels)
    if twice:
        health.add(f"{twice:,} generated images have the very pixels of another one; look at the engine and its seeds")
    _unexpected_files(store, plan, health)
    for identity in plan.identities:
        if there[identity.pid] < identity.total:
            health.incomplete[identity.pid] = dict.fromkeys(MODALITIES, (there[identity.pid], identity.total))
    return health


def verify_dataset(out: Path | str, advance: Callable[[int], object] = lambda pairs: None) -> Health:
    """`verify` of the dataset in a folder or behind a URL; one without a plan raises `InputError`."""
    store = open_store(out)
    return verify(store, store_plan(store), advance)


def repair(store: Store, health: Health) -> int:
    """Removes damaged files and the records of their shards; returns how many. The next run makes only those again."""
    names = [shard_name(number) for number in sorted(health.damaged)]
    gone = 0
    for name in [*names, *health.files]:
        if store.size(name) is not None:
            store.remove(name)
            gone += 1
    return gone


def _records(store: Store, plan: SynthesisPlan, number: int, health: Health) -> list[PairRecord] | None:
    """A shard's records, [] where they are not as planned; None for a shard that is not made."""
    name = shard_name(number)
    try:
        records = list(parse_shard(store.read(name), f"{store.where}/{name}"))
    except FileNotFoundError:
        return None
    except InputError as error:
        health.add(str(error), number)
        return []
    planned = [(pair, {str(side): file for side, file in files.items()}) for pair, files in shard_pairs(plan, number)]
    if [(record.spec, record.files) for record in records] != planned:
        health.add(
            f"{name} does not hold the {len(planned)} pairs that are planned for it; run synth again with --check",
            number,
        )
        return []
    return records


def _read_all(
    store: Store, readers: ThreadPoolExecutor, files: list[str], made: set[str]
) -> Iterator[tuple[str, int | None, str, bytes | None]]:
    """Name, bytes (None: missing) and hash of every file, and the `content_hash` of those in `made`."""

    def read(name: str) -> tuple[str, int | None, str, bytes | None]:
        try:
            data = store.read(name)
        except (FileNotFoundError, InputError):  # no file is there, or another thing in its place
            return name, None, "", None
        return name, len(data), hashlib.sha256(data).hexdigest(), content_hash(data) if name in made else None

    names = iter(files)
    while few := list(islice(names, 64)):  # bounded, whatever the size of a shard
        yield from readers.map(read, few)


def _duplicates(pixels: array[int]) -> int:
    values = np.sort(np.frombuffer(pixels, dtype=np.uint64)) if pixels else np.empty(0, np.uint64)
    return int((values[1:] == values[:-1]).sum())


def _unexpected_files(store: Store, plan: SynthesisPlan, health: Health) -> None:
    """Adds a problem for every file that is neither planned nor one of a dataset's own."""
    identities = {identity.pid: identity for identity in plan.identities}
    for folder, names in groupby(store.walk(), key=lambda name: str(PurePosixPath(name).parent)):
        camera, _, pid = folder.partition("/")
        identity = identities.get(pid)
        planned = _planned(plan, identity, camera) if identity else set()
        for name in names:
            if name not in planned and not _own(name, plan):
                health.add(f"{name} is in no record")


def _planned(plan: SynthesisPlan, identity: IdentityPlan, camera: str) -> set[str]:
    """The files of one identity and camera."""
    files = IdentityFiles(identity, f".{plan.image_format}")
    every = (name for index in range(identity.total) for name in files.of_pair(index).values())
    return {name for name in every if name.startswith(f"{camera}/")}


def _own(name: str, plan: SynthesisPlan) -> bool:
    """Whether this is one of a dataset's own files beside images."""
    match = SHARD.fullmatch(name)
    if match:
        return int(match[1]) < plan.shards
    return (
        name in OWN
        or name in {f"exp/{split}_id.txt" for split in ("train", "val", "test")}
        or name.startswith("scores/")
    )
