"""`dive-fast reid show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dive_fast.commands.common import Device, Json, finish, names, torch_device
from dive_fast.commands.reid_inputs import joined, protocol_of, test_sides
from dive_fast.commands.reid_options import (
    Direction,
    Draw,
    Flip,
    Mode,
    OtherPeople,
    Permutations,
    ProtocolName,
    Search,
    Shots,
    Trials,
)


def show(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, from dive-fast reid train.")],
    data: Annotated[
        str,
        typer.Option(
            help="What to search, real images only: a SYSU-MM01 tree, or sysu:PATH, regdb:PATH,trial=N, llcm:PATH."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pages (open index.html) and PNGs.")],
    features_of: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or set whose images the picture of features shows beside queries and gallery: a dataset from "
            "dive-fast synth, a SYSU-MM01 or a Market-1501 tree, or LAYOUT:PATH; may be repeated."
        ),
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries shown for each camera and order.")] = 6,
    orders: Annotated[
        str, typer.Option(help="Which queries, comma-separated: random, worst (lowest AP first), best.")
    ] = "random,worst,best",
    top: Annotated[int, typer.Option(min=1, help="Gallery images shown for each query.")] = 10,
    shown_trial: Annotated[int, typer.Option(min=1, help="Which of the protocol's trials is shown, from 1.")] = 1,
    per_page: Annotated[int, typer.Option(min=1, help="Queries on a page.")] = 48,
    tsne: Annotated[bool, typer.Option(help="Picture and count features; needs scikit-learn.")] = True,
    images: Annotated[int, typer.Option(min=1, help="Images in the picture of features, at most.")] = 1500,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random choices and of t-SNE.")] = 0,
    protocol: ProtocolName = "pocket",
    search: Search = "all",
    shots: Shots = 1,
    trials: Trials = 10,
    draw: Draw = "seeded",
    permutations: Permutations = None,
    direction: Direction = "ir-to-visible",
    mode: Mode = "standard",
    other_people: OtherPeople = False,
    flip: Flip = True,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Look at what a checkpoint finds: queries with their nearest gallery images, and features in a plane."""
    from dive_fast.reid.pictures.config import ShowConfig
    from dive_fast.reid.pictures.show import show_retrieval

    rules, tables = protocol_of(data, protocol, search, shots, trials, draw, permutations, direction, mode)
    query, gallery = test_sides(data, rules)
    page = show_retrieval(
        checkpoint,
        query,
        gallery,
        out,
        ShowConfig(
            queries,
            tuple(names(orders)),  # type: ignore[arg-type]
            top,
            shown_trial,
            per_page,
            images=images if tsne else 0,
            seed=seed,
            flip=flip,
        ),
        protocol=rules,
        dataset=data,
        permutations=tables,
        features_of=joined([], features_of, True) if features_of else None,
        other_people=other_people,
        device=torch_device(device),
    )
    finish(f"pictures: open {page}", {"page": page}, json)
