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
    Literal["pocket", "sysu", "regdb", "llcm"],
    typer.Option(
        help="pocket searches the whole gallery; sysu and llcm draw it, as published; regdb searches all of one trial's."
    ),
]
Search = Annotated[Literal["all", "indoor"], typer.Option(help="sysu: which visible cameras.")]
Shots = Annotated[int, typer.Option(min=1, help="sysu: gallery images per identity and camera; 10 is multi-shot.")]
Trials = Annotated[int, typer.Option(min=1, help="sysu and llcm: gallery draws.")]
Draw = Annotated[
    Literal["seeded", "official"],
    typer.Option(
        help="sysu: galleries as the AGW family draws them, or those of rand_perm_cam.mat; the numbers differ."
    ),
]
Permutations = Annotated[
    Path | None,
    typer.Option(
        help="sysu: the official rand_perm_cam.mat, if not in the data set's exp folder; implies --draw official."
    ),
]
Direction = Annotated[
    Literal["ir-to-visible", "visible-to-ir"],
    typer.Option(help="regdb and llcm: modality of the queries, and of the gallery that is searched."),
]
Mode = Annotated[
    Literal["standard", "legacy"],
    typer.Option(
        help="llcm: legacy repeats the figures published as VIS to IR (--direction visible-to-ir), which are of infrared "
        "queries in a visible gallery."
    ),
]
Rerank = Annotated[bool, typer.Option("--rerank", help="Re-rank by k-reciprocal neighbours (k1 20, k2 6, lambda 0.3).")]
OtherPeople = Annotated[
    bool,
    typer.Option(
        "--other-people",
        help="The checkpoint was trained on another data set: people of the same names are not the test's.",
    ),
]
Flip = Annotated[bool, typer.Option(help="Average each embedding with its mirror image's.")]
Backbone = Annotated[str, typer.Option(help="pocket, pocket-vit, resnet50, vit-b16 or clip-vit-b16; see the recipe.")]
Weights = Annotated[Path | None, typer.Option(help="Pretrained weights of the backbone, a local path.")]
Precision = Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the forward pass; weights stay fp32.")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of any other setting, as in reid train. Repeat for each."),
]
