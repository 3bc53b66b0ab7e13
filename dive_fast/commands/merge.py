"""`dive-fast merge` and `manifest`: what was made, as other people's programs read it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dive_fast.commands.common import Json, finish, image_size, say
from dive_fast.types import InputError

# As dive_fast.data.layouts has it; written again, because its imports are too heavy for --help.
Layout = Literal["sysu", "agw", "regdb", "llcm", "market"]


def merge(
    out: Annotated[Path, typer.Option(help="New folder to write; nothing that exists is written to.")],
    layout: Annotated[
        Layout,
        typer.Option(
            help="sysu: SYSU-MM01's tree; agw: the AGW family's .npy arrays; regdb, llcm: folders and idx lists; market: "
            "Market-1501's file names, JPEG only."
        ),
    ],
    real: Annotated[
        list[str] | None,
        typer.Option(
            help="A set of photos, LAYOUT:PATH with a layout of sysu, regdb, llcm, market, market-gt-bbox, msmt17, folder; "
            "give it once a set. After the path may follow ,prefix=P (put before names of people) ,split=S ,camera=C "
            ",trial=N."
        ),
    ] = None,
    synthetic: Annotated[
        list[str] | None,
        typer.Option(help="Dataset folder from dive-fast synth, ,prefix=P may follow; give it once a dataset."),
    ] = None,
    how: Annotated[
        Literal["copy", "symlink", "link"],
        typer.Option(
            help="How images get there: copy, which nothing done to the new tree can reach; symlink; or link, a hard link. "
            "Through both links a program that writes to an image changes the original."
        ),
    ] = "copy",
    size: Annotated[str, typer.Option(help="agw: size of the images, HEIGHTxWIDTH; DEEN: 384x144.")] = "288x144",
    camera: Annotated[
        list[str] | None,
        typer.Option(
            help="OLD=NEW renames a camera of images that get a new name, as cam7=cam1; give it once a camera."
        ),
    ] = None,
    missing: Annotated[
        Literal["keep", "drop", "refuse"],
        typer.Option(help="What becomes of people seen in one modality only: kept, left out, or an error."),
    ] = "keep",
    same_people: Annotated[
        bool, typer.Option("--same-people", help="A name in a dataset and in another set or dataset means one person.")
    ] = False,
    number_people: Annotated[
        bool,
        typer.Option(
            "--number-people", help="Give people whose names are not four digits free numbers of four digits."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Join real photos and synthetic pairs into a new tree that trainers read; rerun to resume.

    Pairs that are rejected or dropped are left out. People of a set's test half are refused; the half itself is carried
    over into a tree of the set's own layout. provenance.jsonl says of every image where it came from. Example: dive-fast
    merge --real sysu:SYSU-MM01 --synthetic runs/pairs --same-people --layout agw --out runs/agw
    """
    from tqdm import tqdm

    from dive_fast.data.sets import EXTERNAL, PAIRED, parse_set
    from dive_fast.merge.config import MergeConfig
    from dive_fast.merge.inputs import parse_dataset, read_inputs
    from dive_fast.merge.plan import survey
    from dive_fast.merge.write import asked_for, finished_report
    from dive_fast.merge.write import merge as write

    height_width = image_size(size)
    assert height_width is not None  # only None gives None
    config = MergeConfig(layout, how, height_width, missing, same_people, number_people, _cameras(camera or []))
    specs = [parse_set(text, (*PAIRED, *EXTERNAL)) for text in real or []]
    datasets = [parse_dataset(text) for text in synthetic or []]
    report = finished_report(out, asked_for(specs, datasets, config))
    if report is None:
        with tqdm(desc="verify photos", unit="image") as bar:
            inputs = read_inputs(specs, datasets, layout, bar.update)
        with tqdm(desc="look through", unit="image") as bar:
            decided = survey(inputs, config, bar.update)
        with tqdm(total=decided.total, desc="merge", unit="image") as bar:
            report = write(decided, out, bar.update)
    else:
        say(f"{out} is finished already")
    finish(_text(out, report), {"out": out, **{k: report[k] for k in ("people", "train", "test", "converted")}}, json)


def _cameras(pairs: list[str]) -> dict[str, str]:
    renamed = {}
    for pair in pairs:
        old, found, new = pair.partition("=")
        if not (old and found and new) or old in renamed:
            raise InputError(f"--camera {pair!r} is not OLD=NEW, or names OLD again; as cam7=cam1")
        renamed[old] = new
    return renamed


def _text(out: Path, report: dict[str, Any]) -> str:
    counts = ", ".join(f"{row['images']:,} {row['kind']} {row['modality']}" for row in report["train"])
    test = (
        f"; {report['test']:,} test images of {', '.join(report['test_of'])}" if report["test_of"] else "; no test half"
    )
    return f"merged tree {out}: {report['people']:,} people to train on, images: {counts}{test}"


def manifest(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, from dive-fast synth.")],
    parquet: Annotated[
        Path, typer.Option(help="Parquet file to write, one row a pair; none that exists is overwritten.")
    ],
    json: Json = False,
) -> None:
    """Write a dataset's manifest, with scores and what a filter dropped, as a Parquet table (needs pyarrow)."""
    from tqdm import tqdm

    from dive_fast.merge.table import write_parquet

    with tqdm(desc="table", unit="pair") as bar:
        pairs = write_parquet(dataset, parquet, bar.update)
    finish(f"table {parquet}: {pairs:,} pairs of {dataset}", {"parquet": parquet, "pairs": pairs}, json)
