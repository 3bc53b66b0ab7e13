"""`dive-fast report`: a gallery to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Dataset, Json, LastFile, beside, finish, following
from dive_fast.progress import ProgressBar, log
from dive_fast.report.config import ReportConfig
from dive_fast.words import count


def report(
    dataset: Dataset,
    /,
    out: Annotated[
        Path, "Folder to write, whose index.html needs no server. A name in .html gives one page of a few pairs."
    ],
    config: ReportConfig,
    verify: Annotated[bool, "Also show what dive-fast verify finds; reads every file of the dataset."] = False,
    overwrite: Annotated[bool, "Replace another page in .html; a gallery is updated."] = False,
    json: Json = False,
) -> None:
    """Show a dataset's pairs, scores and counts in a gallery; rerun to update it."""
    problems = _problems(dataset) if verify else None
    then = following("reid train", real="sysu:PHOTOS", synthetic=dataset, out=beside(dataset, "reid"))
    if out.suffix.lower() in (".html", ".htm"):
        from dive_fast.outputs import PAGE, output_file
        from dive_fast.report.sheet import write_sheet

        last = LastFile(out)
        with output_file(out, PAGE, overwrite) as fresh:
            write_sheet(dataset, fresh, config, problems)
        finish(f"report {out}", {"report": out}, json, then=then, kept=last.kept)
        return
    from dive_fast.report.gallery import write_gallery
    from dive_fast.types import to_dict

    last = LastFile(out / "data" / "index.js", by_content=True)
    made = write_gallery(dataset, out, config, problems=problems)
    for note in made.notes:
        log(f"note: {note}")
    finish(
        f"report {made.page}: {made.pairs:,} of {count(made.planned, 'pair')}, thumbnails: {count(made.packs, 'pack')} "
        f"({made.packs_made:,} made now)",
        {"report": made.page, **to_dict(made)},
        json,
        then=then,
        kept=last.kept and not made.packs_made,
    )


def _problems(dataset: Path) -> list[str]:
    """Returns the first problems that verify finds, and the number of the others."""
    from dive_fast.synth.manifest import dataset_plan
    from dive_fast.synth.verify import verify_dataset

    with ProgressBar(total=len(dataset_plan(dataset).pairs), unit="pair", desc="verify") as bar:
        health = verify_dataset(dataset, bar.update)
    more = health.found - len(health.problems)
    return [*health.problems, *([f"and {more:,} more"] if more > 0 else [])]
