"""What commands print: counts with their noun, durations and sizes, and a summary as a line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_IRREGULAR = {"person": "people"}


def count(number: int, noun: str) -> str:
    """Returns a number and its noun, "1 shard" or "2,000 shards"; `noun` is in the singular, its last word counts."""
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Returns the plural of an English noun, by the regular endings."""
    start, space, last = noun.rpartition(" ")
    if last in _IRREGULAR:
        return f"{start}{space}{_IRREGULAR[last]}"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def duration(seconds: float) -> str:
    """Returns a time in the unit that gives a number below about 120: seconds, minutes, hours or days."""
    if seconds < 120:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"


def size(count: float) -> str:
    """Returns bytes in the decimal unit that gives a number below 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} PB"


def json_line(summary: Mapping[str, Any]) -> str:
    """Returns a summary as one line of JSON with sorted keys; paths become text."""
    return json.dumps(summary, sort_keys=True, default=str)
