"""`dive-fast demo`: the main job, end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Json, LastFile, finish, following
from dive_fast.experiments.config import DemoConfig
from dive_fast.settings import Part


def demo(
    config: Annotated[DemoConfig, Part(only=("model", "adapter", "encoder"))],
    out: Annotated[Path, "Folder for everything the demo makes; its page is index.html."] = Path("demo"),
    json: Json = False,
) -> None:
    """Run the whole job on the pocket world, from photos to pairs, a ReID comparison and a page; rerun to resume."""
    from dive_fast.experiments.demo import PAGE_NAME, run_demo
    from dive_fast.outputs import PAGE, check_place

    check_place(out / PAGE_NAME, PAGE)
    last = LastFile(out / PAGE_NAME)
    found = run_demo(out, config)
    summary = {"page": found.page, "result": found.result, "limits": found.limits}
    then = following("report", out / "pairs", out=out / "gallery")
    finish(f"{found.result}\n{found.limits}\ndone: open {found.page}", summary, json, then=then, kept=last.kept)
