"""`dive-fast reid`: training, evaluating and comparing cross-modality re-identification models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dive_fast.commands.common import Device, Json, finish, names, numbers, torch_device
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.types import Sample

app = typer.Typer(help="Person re-identification, infrared to visible: what synthetic pairs are good for.")
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


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    real: Annotated[Path | None, typer.Option(help="SYSU-MM01 tree; its train and val lists are used.")] = None,
    synthetic: Annotated[
        list[Path] | None, typer.Option(help="Dataset folder from dive-fast synth; may be repeated.")
    ] = None,
    same_people: SamePeople = False,
    steps: Steps = 500,
    identities: Identities = 8,
    per_modality: PerModality = 3,
    missing: Missing = "refuse",
    synthetic_share: Share = None,
    lr: Rate = 2e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Train on real and synthetic pairs; rerun to resume."""
    from dive_fast.reid.train import ReidConfig, train_reid

    if real is None and not synthetic:
        raise InputError("nothing to train on; give --real, --synthetic or both")
    samples = _joined([real] if real is not None else [], synthetic or [], same_people)
    config = ReidConfig(
        steps=steps,
        identities=identities,
        per_modality=per_modality,
        missing=missing,
        synthetic_share=synthetic_share,
        lr=lr,
        seed=seed,
    )
    train_reid(samples, config, out, device=torch_device(device))
    people = len({sample.pid for sample in samples})
    finish(
        f"checkpoint {out}: {len(samples):,} images of {people:,} identities",
        {"checkpoint": out, "images": len(samples), "identities": people},
        json,
    )


@app.command("eval")
def evaluate(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint folder, from dive-fast reid train.")],
    data: Annotated[Path, typer.Option(help="SYSU-MM01 tree; its test list is used, real images only.")],
    protocol: ProtocolName = "pocket",
    search: Search = "all",
    shots: Shots = 1,
    trials: Trials = 10,
    permutations: Permutations = None,
    flip: Annotated[bool, typer.Option(help="Average each embedding with its mirror image's.")] = True,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Evaluate a checkpoint: infrared query, visible gallery."""
    from dive_fast.reid.evaluate import evaluate_reid
    from dive_fast.reid.protocols import Protocol, read_permutations
    from dive_fast.types import to_dict

    query, gallery = _test_sides(data)
    result = evaluate_reid(
        checkpoint,
        query,
        gallery,
        protocol=Protocol(protocol, search, shots, trials, "official" if permutations else "seeded"),
        dataset=str(data),
        permutations=read_permutations(permutations) if permutations else None,
        flip=flip,
        device=torch_device(device),
    )
    finish(
        f"mAP {result.map:.2f}, rank-1 {result.rank1:.2f}, mINP {result.minp:.2f} "
        f"({protocol}, {result.valid_queries:,} queries)",
        to_dict(result),
        json,
    )


@app.command()
def compare(
    data: Annotated[Path, typer.Option(help="SYSU-MM01 tree; every arm trains on it, its test list is searched.")],
    arm: Annotated[
        list[str],
        typer.Option(
            help="NAME or NAME=FOLDER[,FOLDER]: what an arm trains on beside --data, each a dataset from dive-fast "
            "synth, a SYSU-MM01 tree or a Market-1501 tree. Repeat for each arm."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for every training and the table.")],
    baseline: Annotated[str, typer.Option(help="Arm that the others are compared with.")] = "baseline",
    oracle: Annotated[str, typer.Option(help="Arm that sees the truth, for gap closed.")] = "oracle",
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated; every arm runs with each.")] = "0,1,2",
    same_people: SamePeople = False,
    steps: Steps = 500,
    identities: Identities = 8,
    per_modality: PerModality = 3,
    missing: Missing = "refuse",
    synthetic_share: Share = None,
    lr: Rate = 2e-3,
    protocol: ProtocolName = "pocket",
    search: Search = "all",
    shots: Shots = 1,
    trials: Trials = 10,
    permutations: Permutations = None,
    device: Device = "auto",
    workers: Annotated[
        int, typer.Option(min=1, help="Trainings at once, sharing the cores; on CPUs try 2 or more.")
    ] = 1,
    json: Json = False,
) -> None:
    """Train several training sets alike, with several seeds, and print one table; rerun to resume."""
    from dive_fast.reid.compare import compare as run
    from dive_fast.reid.protocols import Protocol, read_permutations
    from dive_fast.reid.train import ReidConfig

    query, gallery = _test_sides(data)
    run(
        _arms(arm, data, same_people),
        query,
        gallery,
        ReidConfig(
            steps=steps,
            identities=identities,
            per_modality=per_modality,
            missing=missing,
            synthetic_share=synthetic_share,
            lr=lr,
        ),
        numbers(seeds),
        out,
        baseline=baseline,
        oracle=oracle,
        protocol=Protocol(protocol, search, shots, trials, "official" if permutations else "seeded"),
        permutations=read_permutations(permutations) if permutations else None,
        dataset=str(data),
        device=torch_device(device),
        workers=workers,
    )
    show_comparison(out, json)


def show_comparison(folder: Path, as_json: bool) -> None:
    """The table that a comparison left in `folder`, and its numbers."""
    from dive_fast.io import read_json

    record = read_json(folder / "compare.json", "comparison")
    scores = {arm["name"]: {"map": arm["map_mean"], "gap_closed": arm["gap_closed_mean"]} for arm in record["arms"]}
    finish((folder / "table.txt").read_text(encoding="utf-8").rstrip(), {"compare": folder, "arms": scores}, as_json)


def _arms(options: list[str], data: Path, same_people: bool) -> dict[str, list[Sample]]:
    """Every arm's training samples, --data's included."""
    arms: dict[str, list[Sample]] = {}
    for option in options:
        name, _, folders = option.partition("=")
        if name in arms:
            raise InputError(f"--arm {name!r} is given twice")
        arms[name] = _joined([data], [Path(folder) for folder in names(folders or None)], same_people)
    return arms


def _joined(real: list[Path], others: list[Path], same_people: bool) -> list[Sample]:
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


def _test_sides(data: Path) -> tuple[list[Sample], list[Sample]]:
    """Infrared queries and visible gallery of the test identities."""
    from dive_fast.data import read_sysu

    samples = read_sysu(data, "test")
    return [s for s in samples if s.modality == "ir"], [s for s in samples if s.modality == "rgb"]
