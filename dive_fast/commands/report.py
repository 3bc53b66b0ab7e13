"""`dive-fast report`: a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dive_fast.commands.common import Json, finish


def report(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, from dive-fast synth.")],
    out: Annotated[Path, typer.Option(help="HTML file to write; it holds its images and needs no network.")],
    people: Annotated[int, typer.Option(min=1, help="Identities to show.")] = 24,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs to show of each.")] = 4,
    json: Json = False,
) -> None:
    """Show a dataset's pairs side by side, and what verify finds, on one page."""
    from dive_fast.report.gallery import write_gallery

    page = write_gallery(dataset, out, people, pairs)
    finish(f"report {page}", {"report": page}, json)
