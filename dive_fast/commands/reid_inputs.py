"""What `dive-fast reid` commands read: options that they share, training samples, test sides and the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from dive_fast.commands.common import PhotoSet
from dive_fast.data.names import free_prefix
from dive_fast.data.sets import PAIRED, SET_HELP, SetSpec, read_photos, read_set
from dive_fast.options import Changes
from dive_fast.progress import log
from dive_fast.reid.evaluation.protocols import Protocol, ProtocolName, read_permutations
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.recipes import RECIPES, override, recipe
from dive_fast.settings import OneOf, Part
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.reid.evaluation.protocols import Permutations as Tables
    from dive_fast.types import Sample

Real = Annotated[Sequence[PhotoSet], f"Real photos to train on: {SET_HELP}"]
Test = Annotated[PhotoSet, f"Set to test on, of RGB and infrared; split=test unless split=val is given. {SET_HELP}"]
SamePeople = Annotated[bool, "A name in a real set and in an added set or dataset means one person."]
Rerank = Annotated[bool, "Re-rank by k-reciprocal neighbours (k1 20, k2 6, lambda 0.3)."]
OtherPeople = Annotated[
    bool, "The checkpoint was trained on another data set: its identities are not the test's, even with equal names."
]
Recipe = Annotated[
    str,
    OneOf(tuple(RECIPES)),
    "Settings to start from: for the pocket world on a CPU, or as published by AGW or CAJ. The defaults shown are those of "
    "pocket; options that are given override the recipe.",
]
Name = Annotated[
    ProtocolName | None,
    "pocket searches the whole gallery, sysu and llcm draw it, regdb searches a trial's; without it the set decides.",
]
Rules = Annotated[Changes[Protocol], Part(only=("search", "shots", "trials", "draw", "direction", "mode"))]
Permutations = Annotated[
    Path | None, "sysu: the official rand_perm_cam.mat, if it is not in the set's exp folder; implies --draw official."
]

_PROTOCOLS: dict[str, tuple[ProtocolName, ...]] = {
    "sysu": ("sysu", "pocket"),
    "regdb": ("regdb",),
    "llcm": ("llcm",),
}


def config_from(name: str, changes: Changes[ReidConfig]) -> ReidConfig:
    """Returns the recipe called `name` with the options that were given."""
    return override(recipe(name), {route[-1]: value for route, value in changes.given.items()})


def label(spec: SetSpec) -> str:
    """Returns the text that names a set in records: its layout, path and trial."""
    trial = f",trial={spec.trial}" if spec.layout == "regdb" else ""
    return f"{spec.layout}:{spec.root}{trial}"


def join_training(
    real: Sequence[SetSpec], added: Sequence[SetSpec], datasets: Sequence[Path], same_people: bool
) -> list[Sample]:
    """Reads the training samples of all sets and of datasets from dive-fast synth.

    Raises `InputError` for an identity of `real` that is in the others too, unless `same_people`.
    """
    from dive_fast.synth import manifest

    known = read_photos(*real) if real else []
    others = [sample for spec in added for sample in read_set(spec)]
    others += [sample for dataset in datasets for sample in manifest.read_pairs(dataset)]
    people, added_people = {sample.pid for sample in known}, {sample.pid for sample in others}
    shared = people & added_people
    if shared and not same_people:
        prefix = free_prefix(added_people, people)
        raise InputError(
            f"{len(shared):,} identity names, first {min(shared)!r}, are in the real sets and in the added ones; if they "
            f"are the same people, give --same-people; if not, a prefix is missing, as prefix={prefix} behind the added "
            "set, or behind the photos that its dataset is planned and learned from"
        )
    return [*known, *others]


def test_set(spec: SetSpec) -> SetSpec:
    """Returns the set with its test split, or the validation split if that is given."""
    if spec.layout not in PAIRED:
        raise InputError(f"{label(spec)} has no infrared images to test on; give a set of {', '.join(PAIRED)}")
    if spec.split not in (None, "test", "val"):
        raise InputError(f"{label(spec)}: split {spec.split} is trained on; give split test or val")
    return replace(spec, split=spec.split or "test")


def protocol_from(
    spec: SetSpec | None, name: ProtocolName | None, rules: Changes[Protocol], permutations: Path | None = None
) -> tuple[Protocol, Tables | None]:
    """Returns the protocol of the options and, for official draws, the permutations.

    The protocol's trial is that of `spec`. Without a `name` it is guessed, with a note. Raises `InputError` for a protocol
    of another data set.
    """
    if name is None:
        name = _guessed(spec)
    if spec is not None and name not in _PROTOCOLS[spec.layout]:
        allowed = " or ".join(_PROTOCOLS[spec.layout])
        raise InputError(f"--protocol {name} is not for {spec.layout}; {label(spec)} takes {allowed}")
    protocol = rules.apply_to(Protocol(name))
    protocol = replace(
        protocol,
        draw="official" if permutations is not None else protocol.draw,
        trial=1 if spec is None else spec.trial,
    )
    if protocol.draw != "official":
        return protocol, None
    if permutations is None and spec is None:
        raise InputError("--draw official requires the data set (--test) or its rand_perm_cam.mat (--permutations)")
    return protocol, read_permutations(permutations or spec.root / "exp/rand_perm_cam.mat")  # type: ignore[union-attr]


def _guessed(spec: SetSpec | None) -> ProtocolName:
    """Returns the protocol of a set for which none is named, and notes it; without a set the pocket world's."""
    if spec is None:
        return "pocket"
    name = protocol_of(spec)
    log(f"note: no --protocol is given, so {label(spec)} is searched under --protocol {name}")
    return name


def protocol_of(spec: SetSpec) -> ProtocolName:
    """Returns the protocol that a paired set's layout has: sysu but for a tree of a pocket world."""
    of_world = spec.layout == "sysu" and (spec.root.parent / "world.json").is_file()
    return "pocket" if of_world else _PROTOCOLS[spec.layout][0]


def warn_of_pocket(what: str, protocol: str) -> None:
    """Warns of `what`, something of the pocket recipe, under the protocol of a real data set."""
    if protocol != "pocket":
        log(
            f"note: {what} is for the pocket world, and scores under protocol {protocol} will be far below published ones; "
            "train with --recipe agw (or caj) and --weights"
        )


def test_sides(spec: SetSpec, protocol: Protocol) -> tuple[list[Sample], list[Sample]]:
    """Reads query and gallery of the test identities, in the modalities that the protocol searches.

    Warns of a copy with missing images, whose scores cannot be compared with published ones.
    """
    from dive_fast.data.counts import ALL, PUBLISHED

    samples = read_set(spec)
    for modality, word in (("ir", "infrared"), ("rgb", "visible")) if protocol.name != "pocket" else ():
        published = PUBLISHED.get((spec.layout, spec.split or ""), {}).get((ALL, modality))
        count = sum(sample.modality == modality for sample in samples)
        if published is not None and count != published[1]:
            log(
                f"note: {label(spec)} has {count:,} {word} test images, {spec.layout} as published {published[1]:,}: do not "
                "compare its scores with published ones"
            )
    return (
        [sample for sample in samples if sample.modality == protocol.query_modality],
        [sample for sample in samples if sample.modality == protocol.gallery_modality],
    )
