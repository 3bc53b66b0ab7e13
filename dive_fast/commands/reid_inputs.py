"""What `dive-fast reid` reads: training samples of folders and sets, query and gallery of a test half, and the protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.commands.common import say
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.data.sets import SetSpec
    from dive_fast.reid.evaluation.protocols import Permutations, Protocol
    from dive_fast.types import Sample

_PROTOCOLS = {"sysu": ("pocket", "sysu"), "regdb": ("regdb",), "llcm": ("llcm",)}


def joined(real: Sequence[Path | str], others: Sequence[Path | str], same_people: bool) -> list[Sample]:
    """The training samples of all folders and sets; a name on both sides must be said to be one person, not two."""
    known, added = _read(real), _read(others)
    shared = {sample.pid for sample in known} & {sample.pid for sample in added}
    if shared and not same_people:
        raise InputError(
            f"{len(shared):,} identity names, first {min(shared)!r}, are in {', '.join(map(str, real))} and in "
            f"{', '.join(map(str, others))}; if they are the same people, say --same-people"
        )
    return [*known, *added]


def _read(folders: Sequence[Path | str]) -> list[Sample]:
    """The training samples of folders and sets about the same people; a folder's layout says how to read it."""
    from dive_fast.data.market import read_market
    from dive_fast.data.sets import read_set
    from dive_fast.data.sysu import read_sysu
    from dive_fast.synth import manifest

    samples: list[Sample] = []
    for folder in folders:
        spec, path = set_of(folder), Path(folder)
        if spec is not None:
            samples += read_set(spec)
        elif (path / "plan.json").is_file():
            samples += manifest.samples(path)
        elif (path / "bounding_box_train").is_dir():
            samples += read_market(path)
        else:
            samples += read_sysu(path, "trainval")
    return samples


def set_of(data: Path | str) -> SetSpec | None:
    """The set that LAYOUT:PATH[,OPTION=VALUE ...] names; None for a folder."""
    from dive_fast.data.sets import EXTERNAL, PAIRED, parse_set

    layouts = (*PAIRED, *EXTERNAL)
    return parse_set(str(data), layouts) if re.match(rf"({'|'.join(layouts)}):", str(data)) else None


def test_set(data: Path | str) -> SetSpec:
    """The set to test on: a folder is SYSU-MM01's tree; the split is the test's unless another is named."""
    from dive_fast.data.sets import PAIRED, SetSpec

    spec = set_of(data) or SetSpec("sysu", Path(data))
    if spec.layout not in PAIRED:
        raise InputError(f"{data} has no infrared images to test on; give a set of {', '.join(PAIRED)}")
    if spec.split not in (None, "test", "val"):
        raise InputError(
            f"{data}: split {spec.split!r} is trained on; test on split test (or, to choose settings, val)"
        )
    return replace(spec, split=spec.split or "test")


def protocol_of(
    data: Path | str | None,
    name: str,
    search: str = "all",
    shots: int = 1,
    trials: int = 10,
    draw: str = "seeded",
    permutations: Path | None = None,
    direction: str = "ir-to-visible",
    mode: str = "standard",
) -> tuple[Protocol, Permutations | None]:
    """The protocol of the options and, for official draws, the permutations; RegDB's trial is that of `data`.

    Raises `InputError` for a protocol that is another data set's.
    """
    from dive_fast.reid.evaluation.protocols import Protocol, read_permutations

    spec = None if data is None else test_set(data)
    if spec is not None and name not in _PROTOCOLS[spec.layout]:
        raise InputError(
            f"--protocol {name} is not for {spec.layout} ({data}); it takes {' or '.join(_PROTOCOLS[spec.layout])}"
        )
    protocol = Protocol(
        name,  # type: ignore[arg-type]
        search,  # type: ignore[arg-type]
        shots,
        trials,
        "official" if permutations is not None else draw,  # type: ignore[arg-type]
        direction,  # type: ignore[arg-type]
        mode,  # type: ignore[arg-type]
        spec.trial if spec is not None else 1,
    )
    if protocol.draw != "official":
        return protocol, None
    if permutations is not None:
        return protocol, read_permutations(permutations)
    if spec is None:
        raise InputError("--draw official needs the data set (--data) or its rand_perm_cam.mat (--permutations)")
    return protocol, read_permutations(spec.root / "exp/rand_perm_cam.mat")


def test_sides(data: Path | str, protocol: Protocol | None = None) -> tuple[list[Sample], list[Sample]]:
    """Queries and gallery of the test identities, in the modalities that the protocol searches."""
    from dive_fast.data.sets import read_set
    from dive_fast.data.sysu import read_sysu
    from dive_fast.reid.evaluation.protocols import Protocol

    protocol, spec = protocol or Protocol(), test_set(data)
    if protocol.name not in _PROTOCOLS[spec.layout] or spec.trial != protocol.trial:
        raise InputError(
            f"protocol {protocol.name!r}, trial {protocol.trial}, is not that of {data}; protocol_of makes it"
        )
    if set_of(data) is None:
        samples = read_sysu(spec.root, "test")
    else:
        samples = read_set(spec)
    if protocol.name != "pocket":
        _say_if_incomplete(spec, samples, str(data))
    return (
        [s for s in samples if s.modality == protocol.query_modality],
        [s for s in samples if s.modality == protocol.gallery_modality],
    )


def _say_if_incomplete(spec: SetSpec, samples: Sequence[Sample], data: str) -> None:
    """A copy that is not whole gives numbers that cannot be compared with published ones."""
    from dive_fast.data.counts import ALL, PUBLISHED

    for modality, word in (("ir", "infrared"), ("rgb", "visible")):
        published = PUBLISHED.get((spec.layout, spec.split or ""), {}).get((ALL, modality))
        count = sum(sample.modality == modality for sample in samples)
        if published is not None and count != published[1]:
            say(f"note: {data} has {count:,} {word} test images, {spec.layout} as published {published[1]:,}: do not "
                "compare its scores with published ones")  # fmt: skip
