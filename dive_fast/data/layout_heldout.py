"""The test half of a set, which a tree that adds to its training half copies unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dive_fast.data.names import canonical_pid, image_files, warn_unread
from dive_fast.data.sets import READERS, SetSpec
from dive_fast.data.sysu import read_ids

_LISTS = {
    "sysu": ("exp/test_id.txt",),
    "llcm": ("idx/test_id.txt",),
    "regdb": ("idx/test_visible_{trial}.txt", "idx/test_thermal_{trial}.txt"),
}


@dataclass(frozen=True)
class HeldOut:
    """`people` under the set's prefix, whom no training may use; `images` and `list_files` (lists, draws) as they lie.

    `names` are the people without the prefix, as the files name them.
    """

    people: frozenset[str]
    names: frozenset[str]
    images: tuple[Path, ...]
    list_files: tuple[Path, ...]


def held_out(spec: SetSpec) -> HeldOut | None:
    """What a set tests on; None for MSMT17, for folders, and for a copy without its test lists or folders."""
    if spec.layout in ("market", "market-gt-bbox"):
        return _market(spec)
    lists = tuple(spec.root / name.format(trial=spec.trial) for name in _LISTS.get(spec.layout, ()))
    if not lists or not all(path.is_file() for path in lists):
        return None
    trial = {"trial": spec.trial} if "trial" in READERS[spec.layout].keys else {}
    samples = READERS[spec.layout].read(spec.root, split="test", **trial)
    listed = [pid for path in lists if path.name == "test_id.txt" for pid in read_ids(path)]
    draws = sorted((spec.root / "exp").glob("*.mat"))
    people = [*listed, *(sample.pid for sample in samples)]
    return HeldOut(
        _prefixed(spec, people), frozenset(people), tuple(sample.path for sample in samples), (*lists, *draws)
    )


def _market(spec: SetSpec) -> HeldOut | None:
    """Junk and background boxes belong to the gallery, but to no identity."""
    folders = [folder for folder in (spec.root / "query", spec.root / "bounding_box_test") if folder.is_dir()]
    unread: list[Path] = []
    images = tuple(file for folder in folders for file in image_files(folder, unread))
    warn_unread(spec.root, unread)
    numbers = {file.name.split("_")[0] for file in images}
    pids = [canonical_pid(number, str(spec.root)) for number in numbers if number.isdecimal() and int(number)]
    return HeldOut(_prefixed(spec, pids), frozenset(pids), images, ()) if folders else None


def _prefixed(spec: SetSpec, pids: Iterable[str]) -> frozenset[str]:
    return frozenset(canonical_pid(spec.prefix + pid, str(spec.root)) for pid in pids)
