"""The test half of a set, which a tree that adds to its training half copies unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dive_fast.data.llcm import read_llcm
from dive_fast.data.names import canonical_pid, image_files
from dive_fast.data.regdb import read_regdb
from dive_fast.data.sets import SetSpec
from dive_fast.data.sysu import read_ids, read_sysu
from dive_fast.types import Sample


@dataclass(frozen=True)
class HeldOut:
    """`people` under the set's prefix, whom no training may use; `images` and `list_files` (lists, draws) as they lie."""

    people: frozenset[str]
    images: tuple[Path, ...]
    list_files: tuple[Path, ...]


def held_out(spec: SetSpec) -> HeldOut | None:
    """What a set tests on; None for MSMT17, for folders, and for a copy without its test lists or folders."""
    reader = _READERS.get(spec.layout)
    found = reader(spec) if reader else None
    if found is None:
        return None
    people, images, list_files = found
    return HeldOut(frozenset(canonical_pid(spec.prefix + pid, str(spec.root)) for pid in people), images, list_files)


_Found = tuple[set[str], tuple[Path, ...], tuple[Path, ...]]


def _paths(samples: list[Sample]) -> tuple[Path, ...]:
    return tuple(sample.path for sample in samples)


def _sysu(spec: SetSpec) -> _Found | None:
    listed = spec.root / "exp/test_id.txt"
    if not listed.is_file():
        return None
    return (
        set(read_ids(listed)),
        _paths(read_sysu(spec.root, "test")),
        (listed, *sorted((spec.root / "exp").glob("*.mat"))),
    )


def _regdb(spec: SetSpec) -> _Found | None:
    lists = tuple(spec.root / f"idx/test_{kind}_{spec.trial}.txt" for kind in ("visible", "thermal"))
    if not all(path.is_file() for path in lists):
        return None
    samples = read_regdb(spec.root, "test", spec.trial)
    return {sample.pid for sample in samples}, _paths(samples), lists


def _llcm(spec: SetSpec) -> _Found | None:
    listed = spec.root / "idx/test_id.txt"
    if not listed.is_file():
        return None
    return set(read_ids(listed)), _paths(read_llcm(spec.root, "test")), (listed,)


def _market(spec: SetSpec) -> _Found | None:
    """Junk and background boxes belong to the gallery, but to no identity."""
    folders = [folder for folder in (spec.root / "query", spec.root / "bounding_box_test") if folder.is_dir()]
    images = tuple(file for folder in folders for file in image_files(folder))
    numbers = {file.name.split("_")[0] for file in images}
    people = {canonical_pid(number, str(spec.root)) for number in numbers if number.isdecimal() and int(number)}
    return (people, images, ()) if folders else None


_READERS: dict[str, Callable[[SetSpec], _Found | None]] = {
    "sysu": _sysu,
    "regdb": _regdb,
    "llcm": _llcm,
    "market": _market,
    "market-gt-bbox": _market,
}
