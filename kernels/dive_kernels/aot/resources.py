"""Reads the assembler's report."""

from __future__ import annotations

import re


def resources(log: str) -> tuple[int, int]:
    """Returns registers and spilled bytes (stores and loads) a thread of the one kernel in a report of `ptxas -v`."""
    registers = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if registers is None or spills is None:
        raise ValueError(f"the assembler reported no registers and spills: {log.strip()[:200]!r}")
    return int(registers[1]), int(spills[1]) + int(spills[2])
