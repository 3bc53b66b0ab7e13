"""What `dive-fast reid` reads: training samples of folders, query and gallery of a test half."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.types import Sample


def joined(real: list[Path], others: list[Path], same_people: bool) -> list[Sample]:
    """The training samples of all folders; a name on both sides must be said to be one person, not two."""
    known, added = _read(real), _read(others)
    shared = {sample.pid for sample in known} & {sample.pid for sample in added}
    if shared and not same_people:
        raise InputError(
            f"{len(shared):,} identity names, first {min(shared)!r}, are in {', '.join(map(str, real))} and in "
            f"{', '.join(map(str, others))}; if they are the same people, say --same-people"
        )
    return [*known, *added]


def _read(folders: list[Path]) -> list[Sample]:
    """The training samples of folders about the same people; a folder's layout says how to read it."""
    from dive_fast.data import read_market, read_sysu
    from dive_fast.synth import manifest

    samples: list[Sample] = []
    for folder in folders:
        if (folder / "plan.json").is_file():
            samples += manifest.samples(folder)
        elif (folder / "bounding_box_train").is_dir():
            samples += read_market(folder)
        else:
            samples += read_sysu(folder, "trainval")
    return samples


def test_sides(data: Path) -> tuple[list[Sample], list[Sample]]:
    """Infrared queries and visible gallery of the test identities."""
    from dive_fast.data import read_sysu

    samples = read_sysu(data, "test")
    return [s for s in samples if s.modality == "ir"], [s for s in samples if s.modality == "rgb"]
