"""The grammar of photo sets, one row for each layout that can be read, and several sets as one mixture."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from dive_fast.data.folder import read_folder
from dive_fast.data.llcm import read_llcm
from dive_fast.data.market import FOLDERS, read_market
from dive_fast.data.msmt17 import read_msmt17
from dive_fast.data.names import abbreviate, canonical_pid, free_prefix, natural_key
from dive_fast.data.regdb import read_regdb
from dive_fast.data.sysu import read_sysu
from dive_fast.io import brief
from dive_fast.types import InputError, Sample


@dataclass(frozen=True)
class Reader:
    """One layout: `read(root, **keys)` gives its samples; `keys` are what it takes of split, camera and trial.

    `paired` layouts have infrared images. `split` is the default: the one that a generator learns from. `marks` are files
    and folders that a root has, by which it is recognised. `folders` has the split of each folder that may be named in
    place of the root.
    """

    read: Callable[..., list[Sample]]
    paired: bool
    split: str
    keys: tuple[str, ...]
    help: str
    marks: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)


_MARKET = {folder: split for split, folder in FOLDERS.items() if split != "gt_bbox"}
READERS = {
    "sysu": Reader(read_sysu, True, "trainval", ("split",), "SYSU-MM01's tree", ("cam1", "exp")),
    "regdb": Reader(
        read_regdb, True, "train", ("split", "trial"), "RegDB's folders and idx lists", ("Visible", "Thermal")
    ),
    "llcm": Reader(read_llcm, True, "train", ("split",), "LLCM's folders and idx lists", ("idx", "test_vis")),
    "market": Reader(
        read_market, False, "train", ("split", "camera"), "Market-1501's file names", (FOLDERS["train"],), _MARKET
    ),
    "market-gt-bbox": Reader(
        partial(read_market, split="gt_bbox"),
        False,
        "gt_bbox",
        ("camera",),
        "Market-1501's gt_bbox; has test identities",
        folders={FOLDERS["gt_bbox"]: "gt_bbox"},
    ),
    "msmt17": Reader(
        read_msmt17, False, "trainval", ("split", "camera"), "MSMT17's lists, V1 or V2", ("list_train.txt",)
    ),
    "folder": Reader(read_folder, False, "all", ("camera",), "one folder per identity"),
}
PAIRED = tuple(layout for layout, reader in READERS.items() if reader.paired)


@dataclass(frozen=True)
class SetSpec:
    """One set of photos. `prefix` goes before identity names; its layout's row says which other fields it uses.

    `split` None is the layout's default. `camera` is the camera name of all photos of an RGB-only set; `trial` is RegDB's.
    """

    layout: str
    root: Path
    prefix: str = ""
    camera: str = "cam7"
    split: str | None = None
    trial: int = 1

    @property
    def paired(self) -> bool:
        """Whether the set has infrared images."""
        return _reader(self).paired


@dataclass(frozen=True)
class NamedSet:
    """One set of a mixture: its name there, and its samples under the mixture's identity names."""

    name: str
    spec: SetSpec
    samples: tuple[Sample, ...]

    def file_name(self, sample: Sample) -> str:
        """The sample's file relative to the set's root, in POSIX spelling."""
        return sample.path.relative_to(self.spec.root).as_posix()

    def with_samples(self, samples: Sequence[Sample]) -> NamedSet:
        return replace(self, samples=tuple(samples))


def set_help() -> str:
    """The help text of every option that takes a set."""

    def row(layout: str, reader: Reader) -> str:
        keys = ", ".join(f"split={reader.split}" if key == "split" else f"{key}=" for key in reader.keys)
        return f"{layout} ({reader.help}{'; takes ' + keys if keys else ''})"

    kinds = {True: "RGB and infrared", False: "RGB only"}
    rows = [
        f"{kind}: " + ", ".join(row(layout, reader) for layout, reader in READERS.items() if reader.paired == paired)
        for paired, kind in kinds.items()
    ]
    return (
        f"LAYOUT:PATH[,KEY=VALUE ...]. {'; '.join(rows)}. Every layout takes prefix=, put before identity names; "
        "camera= names the camera of RGB-only photos (default cam7), trial= is RegDB's (default 1)."
    )


SET_HELP = set_help()


def parse_set(text: str, layouts: Sequence[str] = ()) -> SetSpec:
    """Parses `LAYOUT:PATH[,prefix=P][,camera=C][,split=S][,trial=N]`; `layouts` restricts the layouts (none: all).

    The path may name one of the layout's `Reader.folders` in place of the root. Only these keys end a path, so it may hold
    commas and colons. Raises `InputError` for any other form and for a key that the layout does not take.
    """
    match = re.fullmatch(r"([\w-]+):(.+?)((?:,(?:prefix|camera|split|trial)=[^,]*)*)", text)
    layouts, shown = layouts or tuple(READERS), brief(repr(text), 80)
    if not match or match[1] not in layouts:
        raise InputError(
            f"set {shown} is not LAYOUT:PATH[,KEY=VALUE ...] with a layout of {', '.join(layouts)}{_guess(text, layouts)}"
        )
    pairs = [option.split("=", 1) for option in match[3].split(",")[1:]]
    options, allowed = dict(pairs), ("prefix", *READERS[match[1]].keys)
    for name, value in pairs:
        if name not in allowed:
            raise InputError(f"set {shown}: {match[1]} takes no {name}, only {', '.join(allowed)}")
        if value != options[name] or (not value and name != "prefix"):
            raise InputError(f"set {shown}: give {name} one value")
    trial = options.pop("trial", "1")
    if not trial.isdecimal() or len(trial) > 9:
        raise InputError(f"set {shown}: trial is a whole number, got {brief(repr(trial), 80)}")
    root, folders = Path(match[2]), READERS[match[1]].folders
    if root.name in folders and options.get("split", folders[root.name]) == folders[root.name]:
        if "split" in allowed:
            options["split"] = folders[root.name]
        root = root.parent
    return SetSpec(match[1], root, trial=int(trial), **options)


def _guess(text: str, layouts: Sequence[str]) -> str:
    """A hint for a set whose layout is missing or misspelled: the layout that the folder has, or the nearest name."""
    layout, colon, rest = text.partition(":")
    if colon and (near := get_close_matches(layout, layouts, 1)):
        return f". Do you mean {near[0]}:{brief(rest, 80)}?"
    root, comma, keys = text.partition(",")
    for name in layouts:
        reader = READERS[name]
        place = Path(root).parent if Path(root).name in reader.folders else Path(root)
        if reader.marks and all(os.path.exists(place / mark) for mark in reader.marks):
            return f". Do you mean {name}:{brief(text, 80)}?"
    found = "folder" in layouts and os.path.isdir(root)
    return f". Do you mean folder:{brief(text, 80)}?" if found else ""


def _reader(spec: SetSpec) -> Reader:
    if spec.layout not in READERS:
        raise InputError(f"layout must be one of {', '.join(READERS)}, got {brief(repr(spec.layout), 80)}")
    return READERS[spec.layout]


def split_of(spec: SetSpec) -> str:
    """The split that the set is read from."""
    return spec.split or _reader(spec).split


def _keys(spec: SetSpec) -> dict[str, Any]:
    return {key: split_of(spec) if key == "split" else getattr(spec, key) for key in _reader(spec).keys}


def settings_of(spec: SetSpec) -> dict[str, Any]:
    """Everything that decides a set's samples except its root: layout, split, prefix and the layout's keys."""
    return {**_keys(spec), "layout": spec.layout, "split": split_of(spec), "prefix": spec.prefix}


def read_set(spec: SetSpec) -> list[Sample]:
    """Reads one set, its prefix before its identity names.

    Warns of identities of a paired set that are seen in one modality only.
    """
    samples = _reader(spec).read(spec.root, **_keys(spec))
    if spec.prefix:
        samples = [replace(s, pid=canonical_pid(spec.prefix + s.pid, str(spec.root))) for s in samples]
    if spec.paired:
        visible, infrared = ({s.pid for s in samples if s.modality == modality} for modality in ("rgb", "ir"))
        single = sorted(visible ^ infrared, key=natural_key)
        if single:
            warnings.warn(
                f"{spec.root}: {len(single):,} identities are seen in one modality only: {abbreviate(single)}",
                stacklevel=2,
            )
    return samples


def read_sets(specs: Sequence[SetSpec | str]) -> list[NamedSet]:
    """Reads every set, given as its text or parsed, and joins them, see `join_sets`."""
    if not specs:
        raise InputError("there is no set to read; give at least one, as sysu:PATH or market:PATH")
    parsed = [parse_set(spec) if isinstance(spec, str) else spec for spec in specs]
    return join_sets([(spec, read_set(spec)) for spec in parsed])


def join_sets(sets: Sequence[tuple[SetSpec, Sequence[Sample]]]) -> list[NamedSet]:
    """Joins sets, each with its samples as `read_set` gives them, under one namespace of identities and cameras.

    Names are the layouts', numbered where one repeats (market, market-2). Nothing is renamed: raises `InputError` for an
    identity or a file in two sets and for a camera of two modalities.
    """
    layouts = [spec.layout for spec, _ in sets]
    named = []
    for i, (spec, samples) in enumerate(sets):
        number = layouts[: i + 1].count(spec.layout)
        named.append(NamedSet(spec.layout + (f"-{number}" if number > 1 else ""), spec, tuple(samples)))
    _check_identities(named)
    _check_cameras(named)
    _check_files(named)
    return named


def all_samples(sets: Sequence[NamedSet]) -> list[Sample]:
    """The samples of all sets, one set after the other."""
    return [sample for named in sets for sample in named.samples]


def read_photos(*sets: SetSpec | str) -> list[Sample]:
    """Returns the photos of one or more sets, each as "LAYOUT:PATH[,KEY=VALUE ...]" (`parse_set`); reads no pixels.

    Layouts are sysu, regdb, llcm, market, market-gt-bbox, msmt17, and folder (one folder per identity). Raises
    `InputError` for a set that cannot be read, and as `join_sets` for sets that do not go together.
    """
    return all_samples(read_sets(sets))


def _check_identities(sets: Sequence[NamedSet]) -> None:
    owner: dict[str, str] = {}
    for named in sets:
        pids = {sample.pid for sample in named.samples}
        clash = sorted(pids & owner.keys(), key=natural_key)
        if clash:
            raise InputError(
                f"{len(clash):,} identity names are in set {owner[clash[0]]} and in set {named.name} ({abbreviate(clash)}). "
                f"Is a prefix missing that tells the people apart, as {named.spec.layout}:{named.spec.root},"
                f"prefix={free_prefix(pids, owner)}{named.spec.prefix}?"
            )
        owner |= dict.fromkeys(pids, named.name)


def _check_cameras(sets: Sequence[NamedSet]) -> None:
    known: dict[str, tuple[str, str]] = {}
    for named in sets:
        for camera, modality in sorted({(s.camera, s.modality) for s in named.samples}):
            other, where = known.setdefault(camera, (modality, named.name))
            if other != modality:
                raise InputError(
                    f"camera {camera!r} is {other} in set {where} and {modality} in set {named.name}; give the photos of "
                    "an RGB-only set another camera, as ,camera=cam7"
                )


def _check_files(sets: Sequence[NamedSet]) -> None:
    owner: dict[Path, str] = {}
    for named in sets:
        for sample in named.samples:
            first = owner.setdefault(sample.path.absolute(), named.name)
            if first != named.name:
                raise InputError(f"{sample.path} is in set {first} and in set {named.name}; name each photo once")
