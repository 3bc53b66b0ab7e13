"""`dive-fast reid compare`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from dive_fast.commands.common import Device, Json, LastFile, PhotoSet, beside, finish, following, torch_device
from dive_fast.commands.reid_inputs import (
    Name,
    Permutations,
    Real,
    Recipe,
    Rules,
    SamePeople,
    config_from,
    join_training,
    label,
    protocol_from,
    test_set,
    test_sides,
    warn_of_pocket,
)
from dive_fast.data.sets import READERS, SetSpec, parse_set
from dive_fast.options import Changes
from dive_fast.progress import log
from dive_fast.reid.training.config import ReidConfig
from dive_fast.settings import Part, PositiveInt, Reads
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    from dive_fast.types import Sample


class _Arm(NamedTuple):
    """One arm: the sets and the datasets that it trains on, and whether the real sets are left out."""

    name: str
    sets: list[SetSpec]
    datasets: list[Path]
    apart: bool


def _arm(text: str) -> _Arm:
    name, _, given = text.partition("=")
    apart = given.startswith("only:")
    given = given.removeprefix("only:")
    # A comma before a key of a set does not separate two sources.
    sources = [part.strip() for part in re.split(r",(?!(?:prefix|camera|split|trial)=)", given)] if given else []
    if not name or not all(sources) or (apart and not sources):
        raise InputError(f"must be NAME[=[only:]SOURCE,...], without empty sources, got {shown(text)}")
    named = [source for source in sources if source.partition(":")[0] in READERS]
    return _Arm(name, [parse_set(one) for one in named], [Path(one) for one in sources if one not in named], apart)


def compare(
    real: Real,
    arm: Annotated[
        Sequence[Annotated[_Arm, Reads(_arm, "NAME[=SOURCE,...]")]],
        "What an arm trains on beside --real: each source is a dataset folder from dive-fast synth, or a set LAYOUT:PATH. "
        "NAME=only:SOURCE,... trains without --real, as synthetic-only=only:runs/pairs.",
    ],
    out: Annotated[Path, "Folder for every training and the table."],
    config: Annotated[Changes[ReidConfig], Part(skip=("seed",))],
    rules: Rules,
    test: Annotated[PhotoSet | None, "Set whose test split is searched; by default the first of --real."] = None,
    protocol: Name = None,
    permutations: Permutations = None,
    baseline: Annotated[str, "Arm that the others are compared with."] = "baseline",
    oracle: Annotated[str, "Arm that trains on the truth, for gap closed."] = "oracle",
    seeds: Annotated[tuple[int, ...], "Seeds; every arm runs with each. Three are few for a test of significance."] = (
        0,
        1,
        2,
    ),
    same_people: SamePeople = False,
    recipe: Recipe = "pocket",
    cache: Annotated[Path | None, "Folder for files of the decoded images, for sets larger than the memory."] = None,
    device: Device = "auto",
    workers: Annotated[PositiveInt, "Trainings at once, sharing the cores; on CPUs try 2 or more."] = 1,
    json: Json = False,
) -> None:
    """Train several training sets alike, with several seeds, and print one table with significance; rerun to resume."""
    from dive_fast.reid.comparison.compare import compare as run

    arms: dict[str, list[Sample]] = {}
    for one in arm:
        if one.name in arms:
            raise InputError(f"--arm {one.name!r} is given twice")
        arms[one.name] = join_training([] if one.apart else real, one.sets, one.datasets, same_people)
    if baseline not in arms:
        log(f"no arm is called {baseline!r} (--baseline), so there is nothing to compare with: scores only")
    searched = test_set(test or SetSpec(real[0].layout, real[0].root, trial=real[0].trial))
    chosen, tables = protocol_from(searched, protocol, rules, permutations)
    if recipe == "pocket":
        warn_of_pocket("recipe pocket", chosen.name)
    query, gallery = test_sides(searched, chosen)
    last = LastFile(out / "compare.json", by_content=True)
    run(
        arms,
        query,
        gallery,
        config_from(recipe, config),
        seeds,
        out,
        baseline=baseline,
        oracle=oracle,
        apart=[one.name for one in arm if one.apart],
        protocol=chosen,
        permutations=tables,
        dataset=label(searched),
        device=torch_device(device),
        workers=workers,
        cache=cache,
    )
    shown = out / arm[-1].name / f"seed-{seeds[0]}"
    options = {"checkpoint": shown, "test": label(searched), "protocol": chosen.name, "out": beside(out, "show")}
    show_comparison(out, json, following("reid show", **options), last.kept)


def show_comparison(folder: Path, as_json: bool, then: str, kept: bool) -> None:
    """Prints the table that a comparison left in `folder`, its numbers and the next command, as `finish` does."""
    from dive_fast.json_files import read_json

    record = read_json(folder / "compare.json", "comparison")
    scores = {arm["name"]: {"map": arm["map_mean"], "gap_closed": arm["gap_closed_mean"]} for arm in record["arms"]}
    for arm in record["arms"]:
        if arm.get("significance") is not None:
            scores[arm["name"]]["verdict"] = arm["significance"]["verdict"]
    table = (folder / "table.txt").read_text(encoding="utf-8").rstrip()
    finish(table, {"compare": folder, "arms": scores}, as_json, then=then, kept=kept)
