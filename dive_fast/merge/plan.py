"""Deciding a merge before anything is written: who takes part, under which names, and every reason to refuse."""

from __future__ import annotations

import hashlib
import warnings
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from dive_fast.data.layout_names import Naming
from dive_fast.data.layouts import NATIVE, labels_of, naming
from dive_fast.data.names import canonical_pid, is_number, natural_key
from dive_fast.data.sysu import read_ids
from dive_fast.io import canonical_json
from dive_fast.merge.config import MergeConfig
from dive_fast.merge.inputs import Inputs, MergeImage, Progress, abbreviate_sorted
from dive_fast.types import MODALITIES, InputError, Modality


@dataclass(frozen=True)
class MergedIdentity:
    """One training person: name in the sets, name in the tree, label, and images by modality."""

    pid: str
    name: str
    label: int
    rgb: int
    ir: int


@dataclass(frozen=True)
class Placed:
    """One training image, its name in the tree (None: a row of an array), and its person's name and label."""

    image: MergeImage
    name: str | None
    person: str
    label: int


@dataclass(frozen=True)
class Survey:
    """The decided merge: people, images by (modality, source), bytes, RegDB's trial, and a hash of all of it."""

    inputs: Inputs
    config: MergeConfig
    people: tuple[MergedIdentity, ...]
    images: dict[tuple[Modality, str], int]
    size: int
    trial: int
    digest: str

    def count(self, modality: Modality) -> int:
        return _total(self.images, modality)

    @property
    def total(self) -> int:
        """Images to be written, the test half's too."""
        halves = (self.inputs.held_out[name] for name in carried(self.inputs, self.config))
        return sum(self.images.values()) + sum(len(half.images) for half in halves)

    @cached_property
    def by_pid(self) -> dict[str, MergedIdentity]:
        return {person.pid: person for person in self.people}

    def naming(self) -> Naming | None:
        return naming(self.config.layout, self.trial)

    def placed(self, names: Naming | None) -> Iterator[Placed]:
        """Every training image in order, named by the fresh `names`; equal at every call."""
        for image in self.inputs.images():
            person = self.by_pid.get(image.sample.pid)
            if person is not None:
                image = _renamed(image, self.config)
                yield Placed(image, _name(names, image, person.name), person.name, person.label)


@dataclass
class _Found:
    """Counts of one pass over all images: a few numbers a person, a hash a photo, 64 bits of one a generated file.

    `photos` has each photo's first origin and person; `clashes` the first two (origin, person) of photos that another set
    shows as another person.
    """

    counts: defaultdict[str, Counter[tuple[Modality, str]]] = field(default_factory=lambda: defaultdict(Counter))
    origins: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    cameras: set[tuple[str, Modality]] = field(default_factory=set)
    photos: dict[str, tuple[str, str]] = field(default_factory=dict)
    clashes: list[tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=list)
    files: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


def survey(inputs: Inputs, config: MergeConfig, progress: Progress = lambda _: None) -> Survey:
    """Walks through every image once and decides; `progress` is called for each image.

    Raises `InputError` for a photo of two people, names that the layout's readers cannot read, files that are missing or
    listed twice, test people among those to train on, names in a dataset and elsewhere without `same_people`, and two test
    halves for one tree. Warns of names that some trainers misread, and of people seen in one modality.
    """
    trial = _trial(inputs)
    found = _walk(inputs, config, progress)
    _check_twice(inputs, found.files)
    _check_same_photos(inputs, found)
    _check_names(inputs, found, config.same_people)
    _check_held_out(inputs, config, set(found.counts))
    kept = _people_kept(found, config)
    names = _numbered(kept, inputs, config)
    _check_layout(config, trial, found, list(names.values()))
    labels = labels_of(kept)
    people = tuple(
        MergedIdentity(pid, names[pid], labels[pid], *(_total(found.counts[pid], side) for side in MODALITIES))
        for pid in labels
    )
    images = sum((found.counts[pid] for pid in labels), Counter[tuple[Modality, str]]())
    decided = Survey(inputs, config, people, images, found.size, trial, found.digest.hexdigest())
    _check_kept_names(decided)
    return decided


def carried(inputs: Inputs, config: MergeConfig) -> list[str]:
    """The set whose test half the tree holds: of the tree's layout, one without a prefix before one with it, if any.

    Two without a prefix raise `InputError`.
    """
    native = [s for s in inputs.sets if s.name in inputs.held_out and s.spec.layout in NATIVE[config.layout]]
    plain = [s.name for s in native if not s.spec.prefix]
    if len(plain) > 1:
        raise InputError(f"sets {' and '.join(plain)} both bring a test half for one tree; give one of them a prefix=")
    # gt_bbox shows Market's test people, so a tree that trains on it has no test half
    prefixed = [s.name for s in native if s.spec.prefix and s.spec.layout != "market-gt-bbox"]
    return plain or (prefixed if len(prefixed) == 1 else [])


def val_people(survey: Survey) -> set[str]:
    """The tree's names of the people whom a SYSU set lists in val."""
    held: set[str] = set()
    for named in survey.inputs.sets:
        path = named.spec.root / "exp/val_id.txt"
        if named.spec.layout == "sysu" and path.is_file():
            held |= {canonical_pid(named.spec.prefix + pid, str(path)) for pid in read_ids(path)}
    return {person.name for person in survey.people if person.pid in held}


def _walk(inputs: Inputs, config: MergeConfig, progress: Progress) -> _Found:
    found = _Found()
    for image in inputs.images():
        sample = image.sample
        found.counts[sample.pid][sample.modality, sample.source] += 1
        found.origins[sample.pid].add(image.origin)
        if not image.own:
            found.cameras.add((config.cameras.get(sample.camera, sample.camera), sample.modality))
        if sample.source == "real":
            here = image.origin, sample.pid
            first = found.photos.setdefault(image.sha256, here)
            if first[0] != here[0] and first[1] != here[1]:
                found.clashes.append((first, here))
        if image.pair_id is not None:
            if not sample.path.is_file():
                raise InputError(
                    f"pair {image.pair_id}: {sample.path} is missing; run `dive-fast verify {inputs.roots[image.origin]}`"
                )
            found.files.append(_hash64(image))
        found.size += image.size
        identity = [image.origin, image.file, sample.pid, sample.camera, image.sha256]
        found.digest.update(canonical_json(identity).encode())
        progress(1)
    if not found.counts:
        raise InputError("no image is left to merge: every pair is unfinished, rejected or dropped")
    return found


def _hash64(image: MergeImage) -> int:
    data = f"{image.origin}/{image.file}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _check_twice(inputs: Inputs, files: array[int]) -> None:
    """Eight-byte hashes find possible repeats; only those are compared by name."""
    hashes = np.sort(np.frombuffer(files, dtype=np.uint64)) if files else np.empty(0, dtype=np.uint64)
    doubtful = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: dict[tuple[str, str], str] = {}
    for image in inputs.images() if doubtful else ():
        if image.pair_id is not None and _hash64(image) in doubtful:
            here = f"{image.sample.modality} of pair {image.pair_id}"
            first = seen.setdefault((image.origin, image.file), here)
            if first != here:
                raise InputError(
                    f"{image.sample.path} is {first} and {here}; run `dive-fast verify {inputs.roots[image.origin]}`"
                )


def _check_same_photos(inputs: Inputs, found: _Found) -> None:
    """Refuses photos that two sets show as two people: one person would get two labels."""
    if not found.clashes:
        return
    (first, pid), (other, name) = found.clashes[0]
    long, short, where = (name, pid, first) if len(name) > len(pid) else (pid, name, other)
    wanted = "the prefix that the photos had when they were planned"
    if long.endswith(short):
        wanted = (
            f"the prefix of the other, as {inputs.roots[where]},prefix={long.removesuffix(short)}{inputs.prefix(where)}"
        )
    raise InputError(
        f"{len(found.clashes):,} photos are of two people, {pid} in {first} and {name} in {other} for the first: one person "
        f"would get two labels. Give {where} {wanted}"
    )


def _check_names(inputs: Inputs, found: _Found, same_people: bool) -> None:
    shared = {pid for pid, origins in found.origins.items() if len(origins) > 1}
    if shared and not same_people:
        where = sorted({origin for pid in shared for origin in found.origins[pid]})
        raise InputError(
            f"{len(shared):,} people's names are in more than one of {', '.join(where)} ({abbreviate_sorted(shared)}); say "
            "--same-people if they are the same people, or tell them apart by ,prefix=1 after a path"
        )


def _check_held_out(inputs: Inputs, config: MergeConfig, people: set[str]) -> None:
    brought = carried(inputs, config)
    for named in inputs.sets:
        half = inputs.held_out.get(named.name)
        # gt_bbox holds Market's test people and its reader warns of that: Market is then no test set of the tree
        exempt = named.spec.layout == "market-gt-bbox" and named.name not in brought
        tested = half.people | (half.names if named.name in brought else set()) if half and not exempt else set()
        clash = people & tested
        if clash:
            raise InputError(
                f"{len(clash):,} people of the test half of set {named.name} would be trained on "
                f"({abbreviate_sorted(clash)}). Leave them out, or, if they are other people, give a prefix="
            )


def _people_kept(found: _Found, config: MergeConfig) -> list[str]:
    single = {pid for pid, counts in found.counts.items() if not all(_total(counts, side) for side in MODALITIES)}
    if single:
        counts = f"{len(single):,} of {len(found.counts):,} people"
        message = f"{counts} are seen in one modality only ({abbreviate_sorted(single)})"
        if config.missing == "refuse":
            raise InputError(f"{message}; leave them out with --missing drop")
        advice = "; cross-modality trainers need both: --missing drop leaves them out"
        warnings.warn(message + (" and left out" if config.missing == "drop" else advice), stacklevel=3)
    kept = [pid for pid in found.counts if config.missing == "keep" or pid not in single]
    if not kept:
        raise InputError("no identity is left to merge: all are seen in one modality only; use --missing keep")
    return kept


def _numbered(people: list[str], inputs: Inputs, config: MergeConfig) -> dict[str, str]:
    """Every person's name in the tree."""
    if not config.number_people:
        return {pid: pid for pid in people}
    held = {pid for half in inputs.held_out.values() for pid in half.people | half.names}
    fixed = {pid for pid in (*people, *held) if is_number(pid) and len(pid) == 4}
    number = max((int(pid) for pid in fixed), default=0)
    others = [pid for pid in sorted(people, key=natural_key) if pid not in fixed]
    if number + len(others) > 9999:
        raise InputError(f"four digits do not number {len(people):,} people behind {number:04d}")
    new = {pid: f"{number + i:04d}" for i, pid in enumerate(others, start=1)}
    return {pid: new.get(pid, pid) for pid in people}


def _check_layout(config: MergeConfig, trial: int, found: _Found, people: list[str]) -> None:
    names = naming(config.layout, trial)
    if names is None:
        return
    wrong, cautions = names.problems(sorted(people, key=natural_key), sorted(found.cameras))
    if wrong:
        raise InputError(f"layout {config.layout}: {'; '.join(wrong)}")
    for caution in cautions:
        warnings.warn(caution, stacklevel=3)


def _check_kept_names(survey: Survey) -> None:
    """Checks the names that photos keep; counted names cannot clash."""
    names = survey.naming()
    for image in survey.inputs.photos:
        if image.own and image.sample.pid in survey.by_pid:
            _name(names, image, survey.by_pid[image.sample.pid].name)


def _trial(inputs: Inputs) -> int:
    trials = {named.spec.trial for named in inputs.sets if named.spec.layout == "regdb"}
    if len(trials) > 1:
        raise InputError(
            f"RegDB's trials {sorted(trials)} in one tree would train on people that they test on; take one"
        )
    return trials.pop() if trials else 1


def _total(counts: dict[tuple[Modality, str], int], modality: Modality) -> int:
    return sum(count for (kind, _), count in counts.items() if kind == modality)


def _renamed(image: MergeImage, config: MergeConfig) -> MergeImage:
    camera = image.sample.camera
    if image.own or camera not in config.cameras:
        return image
    return replace(image, sample=replace(image.sample, camera=config.cameras[camera]))


def _name(names: Naming | None, image: MergeImage, person: str) -> str | None:
    if names is None:
        return None
    sample = image.sample
    if image.own:
        return names.keep(image.file, person, sample.camera)
    return names.add(person, sample.camera, sample.modality, sample.path.suffix)
