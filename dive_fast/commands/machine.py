"""`dive-fast doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from dive_fast.commands.common import Json, finish, following
from dive_fast.environment.doctor import engine_names, rows, table
from dive_fast.environment.packages import collect
from dive_fast.settings import OneOf
from dive_fast.types import to_dict


def doctor(
    need: Annotated[str | None, OneOf(engine_names()), "Exit with 1 unless this runs here."] = None,
    json: Json = False,
) -> None:
    """Show what this machine can run, what it lacks, and the remedy; exits with 1 if an installed package is broken."""
    listed = rows(collect(Path.cwd()))
    needed = next((row for row in listed if row.name == need), None)
    broken = [row.name for row in listed if row.state == "broken"]
    failure = f"{', '.join(broken)}: installed but broken; the table has the remedy" if broken else ""
    if needed is not None and needed.state != "ok":
        failure = f"{need} cannot run here: {needed.reason}"
    finish(table(listed), {"rows": [to_dict(row) for row in listed]}, json, failure=failure, then=following("demo"))
