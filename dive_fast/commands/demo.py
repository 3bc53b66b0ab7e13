"""`dive-fast demo`: the main job, end to end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dive_fast.commands.common import Json, finish


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes; its page is index.html.")] = Path(
        "demo"
    ),
    model: Annotated[str, typer.Option(help="Base model folder; pocket is the shipped one.")] = "pocket",
    adapter: Annotated[str, typer.Option(help="Trained adapter of that base; pocket is the shipped one.")] = "pocket",
    json: Json = False,
) -> None:
    """Run the whole job on the pocket world, from photos to pairs, a ReID comparison and a page; rerun to resume."""
    from dive_fast.experiments import demo as room
    from dive_fast.experiments.config import DemoConfig

    page = room.run_demo(out, replace(DemoConfig(), model=model, adapter=adapter))
    finish(f"done: open {page}", {"page": page}, json)
