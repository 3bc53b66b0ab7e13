"""`dive-fast doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dive_fast.commands.common import Json, finish
from dive_fast.types import DiveError, InputError


def doctor(
    need: Annotated[
        str | None, typer.Option(help="Exit with 1 unless this line of the table is ok, for instance torch-cuda.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what this machine can run, what it lacks, and the remedy; exits with 1 if an installed package is broken."""
    from dive_fast.doctor import rows, table
    from dive_fast.facts import collect
    from dive_fast.io import nearest
    from dive_fast.types import to_dict

    listed = rows(collect(Path.cwd()))
    states = {row.name: row for row in listed}
    if need is not None and need not in states:
        raise InputError(f"--need {need!r} is no line of the table{nearest(need, states)}")
    summary: dict[str, Any] = {"rows": [to_dict(row) for row in listed]}
    finish(table(listed), summary, json)
    broken = [row.name for row in listed if row.state == "broken"]
    if need is not None and states[need].state != "ok":
        raise DiveError(f"{need} cannot run here: {states[need].value}")
    if broken:
        raise DiveError(f"{', '.join(broken)}: installed but broken; the table has the remedy")
