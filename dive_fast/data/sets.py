"""Every set that can be read, by the name of its layout; and several of them as one mixture of people."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from dive_fast.data.folder import merge_samples, read_folder
from dive_fast.data.llcm import read_llcm
from dive_fast.data.market import read_market
from dive_fast.data.msmt17 import read_msmt17
from dive_fast.data.names import natural_key, some
from dive_fast.data.regdb import read_regdb
from dive_fast.data.sysu import read_sysu
from dive_fast.types import InputError, Sample

PairedLayout = Literal["sysu", "regdb", "llcm"]
ExternalLayout = Literal["market", "market-gt-bbox", "msmt17", "folder"]

PAIRED: tuple[str, ...] = get_args(PairedLayout)
EXTERNAL: tuple[str, ...] = get_args(ExternalLayout)


@dataclass(frozen=True)
class SetSpec:
    """One set: how it lies and where, and what its people are to be called.

    `split` None is the one that a generator learns from. `camera` is the one name that the photos of an RGB-only set get,
    `trial` that of RegDB; other layouts have no use for them.
    """

    layout: str
    root: Path
    prefix: str = ""
    camera: str = "cam7"
    split: str | None = None
    trial: int = 1

    @property
    def paired(self) -> bool:
        return self.layout in PAIRED


@dataclass(frozen=True)
class NamedSet:
    """One set of a mixture: its name there, and its samples under the mixture's names of people."""

    name: str
    spec: SetSpec
    samples: tuple[Sample, ...]

    def file_name(self, sample: Sample) -> str:
        """The sample's file relative to the set's root, in POSIX spelling."""
        return sample.path.relative_to(self.spec.root).as_posix()

    def with_samples(self, samples: Sequence[Sample]) -> NamedSet:
        return replace(self, samples=tuple(samples))


@dataclass(frozen=True)
class _Layout:
    """The split that a generator learns from, what may be said of it beside a prefix, and how a spec is read."""

    split: str
    options: tuple[str, ...]
    read: Callable[[SetSpec, Any], list[Sample]]


_LAYOUTS = {
    "sysu": _Layout("trainval", ("split",), lambda spec, split: read_sysu(spec.root, split)),
    "regdb": _Layout("train", ("split", "trial"), lambda spec, split: read_regdb(spec.root, split, spec.trial)),
    "llcm": _Layout("train", ("split",), lambda spec, split: read_llcm(spec.root, split)),
    "market": _Layout("train", ("split", "camera"), lambda spec, split: read_market(spec.root, split, spec.camera)),
    "market-gt-bbox": _Layout("gt_bbox", ("camera",), lambda spec, split: read_market(spec.root, split, spec.camera)),
    "msmt17": _Layout("trainval", ("split", "camera"), lambda spec, split: read_msmt17(spec.root, split, spec.camera)),
    "folder": _Layout("all", ("camera",), lambda spec, _: read_folder(spec.root, spec.camera)),
}


def split_of(spec: SetSpec) -> str:
    """The split that the set is read from; another layout than ours raises `InputError`."""
    if spec.layout not in _LAYOUTS:
        raise InputError(f"layout must be one of {tuple(_LAYOUTS)}, got {spec.layout!r}")
    return spec.split or _LAYOUTS[spec.layout].split


def settings_of(spec: SetSpec) -> dict[str, Any]:
    """What decides a set's samples, but for the place where it lies: layout, split, prefix and what its layout takes."""
    options = {name: getattr(spec, name) for name in _LAYOUTS[spec.layout].options}
    return {**options, "layout": spec.layout, "split": split_of(spec), "prefix": spec.prefix}


def read_set(spec: SetSpec) -> list[Sample]:
    """The samples of one set, its prefix before the names of its people.

    Warns of people of a paired set that are seen in one modality only.
    """
    split = split_of(spec)
    samples = merge_samples(_LAYOUTS[spec.layout].read(spec, split), prefixes=[spec.prefix])
    if spec.paired:
        kinds = {kind: {s.pid for s in samples if s.modality == kind} for kind in ("rgb", "ir")}
        single = sorted(kinds["rgb"] ^ kinds["ir"], key=natural_key)
        if single:
            warnings.warn(
                f"{spec.root}: {len(single):,} identities are seen in one modality only: {some(single)}", stacklevel=2
            )
    return samples


def parse_set(text: str, layouts: Sequence[str]) -> SetSpec:
    """The set that "LAYOUT:PATH[,prefix=P][,camera=C][,split=S][,trial=N]" describes, its layout one of `layouts`.

    Only these words end a path, so a path may hold commas and colons. Raises `InputError` for another form, and for an
    option that the layout has no use for.
    """
    match = re.fullmatch(r"([\w-]+):(.+?)((?:,(?:prefix|camera|split|trial)=[^,]*)*)", text)
    if not match or match[1] not in layouts:
        raise InputError(f"set {text!r} is not LAYOUT:PATH[,OPTION=VALUE ...] with a layout of {', '.join(layouts)}")
    pairs = [option.split("=", 1) for option in match[3].split(",")[1:]]
    options, allowed = dict(pairs), ("prefix", *_LAYOUTS[match[1]].options)
    for name, value in pairs:
        if name not in allowed:
            raise InputError(f"set {text!r}: {match[1]} takes no {name}, only {', '.join(allowed)}")
        if value != options[name] or (not value and name != "prefix"):
            raise InputError(f"set {text!r}: give {name} one value")
    trial = options.pop("trial", "1")
    if not trial.isdecimal():
        raise InputError(f"set {text!r}: trial is a whole number, got {trial!r}")
    return SetSpec(match[1], Path(match[2]), trial=int(trial), **options)


def read_mixture(specs: Sequence[SetSpec]) -> list[NamedSet]:
    """Reads every set and mixes them, see `mix`."""
    if not specs:
        raise InputError("there is no set to read; name at least one, as sysu:PATH or market:PATH")
    return mix([(spec, read_set(spec)) for spec in specs])


def mix(sets: Sequence[tuple[SetSpec, Sequence[Sample]]]) -> list[NamedSet]:
    """Sets, each with its samples as `read_set` gives them, under one namespace of people and cameras.

    Names are the layouts', numbered where one comes again (market, market-2). Nothing is renumbered or renamed: raises
    `InputError` for a person, a camera of two modalities, or a file that two sets share, and says what tells them apart.
    """
    layouts = [spec.layout for spec, _ in sets]
    named = []
    for i, (spec, samples) in enumerate(sets):
        number = layouts[: i + 1].count(spec.layout)
        named.append(NamedSet(spec.layout + (f"-{number}" if number > 1 else ""), spec, tuple(samples)))
    _check_people(named)
    _check_cameras(named)
    _check_files(named)
    return named


def mixed_samples(sets: Sequence[NamedSet]) -> list[Sample]:
    """The samples of all sets, one set after the other."""
    return [sample for named in sets for sample in named.samples]


def _check_people(sets: Sequence[NamedSet]) -> None:
    owner: dict[str, str] = {}
    for named in sets:
        pids = {sample.pid for sample in named.samples}
        clash = sorted((pid for pid in pids if pid in owner), key=natural_key)
        if clash:
            raise InputError(
                f"{len(clash):,} identity names are in set {owner[clash[0]]} and in set {named.name} ({some(clash)}); "
                f"they are different people: tell them apart, as {named.spec.layout}:{named.spec.root},prefix=1"
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
