"""Options that several `dive-fast reid` commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

SamePeople = Annotated[
    bool, typer.Option("--same-people", help="A name in the real set and in an added folder means one person.")
]
Steps = Annotated[int, typer.Option(min=1, help="Training steps.")]
Identities = Annotated[int, typer.Option(min=1, help="Identities a batch.")]
PerModality = Annotated[int, typer.Option(min=1, help="Visible images, and infrared ones, per identity in a batch.")]
Missing = Annotated[
    Literal["refuse", "drop", "visible"],
    typer.Option(help="What becomes of an identity without infrared: an error, left out, or visible only."),
]
Share = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Share of a batch's identities that are synthetic (in compare: that not every arm has)."
    ),
]
Rate = Annotated[float, typer.Option(min=0, help="Peak learning rate.")]
ProtocolName = Annotated[
    Literal["pocket", "sysu"], typer.Option(help="pocket searches the whole gallery; sysu draws it, as published.")
]
Search = Annotated[Literal["all", "indoor"], typer.Option(help="sysu: which visible cameras.")]
Shots = Annotated[int, typer.Option(min=1, help="sysu: gallery images per identity and camera.")]
Trials = Annotated[int, typer.Option(min=1, help="sysu: gallery draws.")]
Permutations = Annotated[
    Path | None, typer.Option(help="sysu: the official rand_perm_cam.mat; by default seeded draws.")
]
