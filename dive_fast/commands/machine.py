"""`dive-fast doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Json, finish
from dive_fast.environment.doctor import engine_names, rows, table
from dive_fast.environment.packages import collect
from dive_fast.settings import OneOf
from dive_fast.types import DiveError, to_dict


def doctor(
    need: Annotated[str | None, OneOf(engine_names()), "Exit with 1 unless this runs here."] = None,
    json: Json = False,
) -> None:
    """Show what this machine can run, what it lacks, and the remedy; exits with 1 if an installed package is broken."""
    listed = rows(collect(Path.cwd()))
    finish(table(listed), {"rows": [to_dict(row) for row in listed]}, json)
    states = {row.name: row for row in listed}
    if need is not None and states[need].state != "ok":
        raise DiveError(f"{need} cannot run here: {states[need].value}")
    broken = [row.name for row in listed if row.state == "broken"]
    if broken:
        raise DiveError(f"{', '.join(broken)}: installed but broken; the table has the remedy")
