"""`dive-fast report`: a gallery to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dive_fast.commands.common import Json, finish, say


def report(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, from dive-fast synth.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder to write: open its index.html, it needs no server and no network. A name that ends in .html "
            "gives one page with a few pairs in it instead."
        ),
    ],
    check: Annotated[
        bool, typer.Option("--verify", help="Also show what verify finds; reads every file of the dataset.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that make thumbnails; by default up to 4.")
    ] = None,
    people: Annotated[int, typer.Option(min=1, help="Single page: identities to show.")] = 24,
    pairs: Annotated[int, typer.Option(min=1, help="Single page: pairs to show of each.")] = 4,
    json: Json = False,
) -> None:
    """Show a dataset's pairs, scores and counts in a gallery; rerun to bring it up to date."""
    from dive_fast.report.config import ReportConfig

    config = ReportConfig(workers, people, pairs)
    problems = _problems(dataset) if check else None
    if out.suffix.lower() in (".html", ".htm"):
        from dive_fast.report.sheet import write_sheet

        page = write_sheet(dataset, out, config, problems)
        finish(f"report {page}", {"report": page}, json)
        return
    from dive_fast.report.gallery import write_gallery
    from dive_fast.types import to_dict

    made = write_gallery(dataset, out, config, problems=problems)
    for note in made.notes:
        say(f"note: {note}")
    finish(
        f"report {made.page}: {made.pairs:,} of {made.planned:,} pairs, {made.packs:,} packs of thumbnails "
        f"({made.packs_made:,} made now)",
        {"report": made.page, **to_dict(made)},
        json,
    )


def _problems(dataset: Path) -> list[str]:
    """What verify tells one by one, and how many more there are."""
    from tqdm import tqdm

    from dive_fast.synth.manifest import dataset_plan
    from dive_fast.synth.verify import verify_dataset

    with tqdm(total=len(dataset_plan(dataset).pairs), unit="pair", desc="verify") as bar:
        health = verify_dataset(dataset, bar.update)
    more = health.found - len(health.problems)
    return [*health.problems, *([f"and {more:,} more"] if more > 0 else [])]
