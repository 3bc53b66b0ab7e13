"""`dive-fast reid show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Device, Json, LastFile, PhotoSet, beside, finish, following, torch_device
from dive_fast.commands.reid_inputs import (
    Name,
    OtherPeople,
    Permutations,
    Rules,
    Test,
    join_training,
    label,
    protocol_from,
    test_set,
    test_sides,
)
from dive_fast.data.sets import SET_HELP
from dive_fast.reid.pictures.config import ShowConfig


def show(
    checkpoint: Annotated[Path, "Checkpoint folder, from dive-fast reid train."],
    test: Test,
    out: Annotated[Path, "Folder for the pages (open index.html) and PNGs."],
    config: ShowConfig,
    rules: Rules,
    protocol: Name = None,
    permutations: Permutations = None,
    photos: Annotated[
        Sequence[PhotoSet], f"Photos that the picture of features shows beside queries and gallery: {SET_HELP}"
    ] = (),
    synthetic: Annotated[
        Sequence[Path], "Dataset folder from dive-fast synth that the picture of features shows too."
    ] = (),
    other_people: OtherPeople = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Look at what a checkpoint finds: queries with their nearest gallery images, and features in a plane."""
    from dive_fast.reid.pictures.show import RECORD, show_retrieval

    searched = test_set(test)
    chosen, tables = protocol_from(searched, protocol, rules, permutations)
    query, gallery = test_sides(searched, chosen)
    last = LastFile(out / RECORD, by_content=True)
    page = show_retrieval(
        checkpoint,
        query,
        gallery,
        out,
        config,
        protocol=chosen,
        dataset=label(searched),
        permutations=tables,
        features_of=join_training([], photos, synthetic, True) if photos or synthetic else None,
        other_people=other_people,
        device=torch_device(device),
    )
    arms = ["--arm", "baseline", "--arm", f"ours={synthetic[0] if synthetic else 'PAIRS'}"]
    then = following("reid compare", *arms, real=label(test), protocol=protocol, out=beside(out, "compare"))
    finish(f"pictures: open {page}", {"page": page}, json, then=then, kept=last.kept)
