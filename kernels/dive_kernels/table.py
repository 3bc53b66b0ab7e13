"""Reads the table of measurements, `table.json`, by which `auto` chooses the fastest implementation.

An entry is one op at one size on one GPU: `{"op", "gpu", "capability", "dtype", "key", "work", "ms", ...}`. `key` (head dim,
channels) must be equal for a measurement to count, `work` counts the elements of the result, `ms` holds the median
milliseconds of each implementation by name. `python -m benchmarks.kernels` writes it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

# Our kernels where nobody measured, by compute capability, in half types: the bytes that inductor's own code moves there
# speak for them (docs/speed.md#kernels).
BY_TRAFFIC = {90: ("groupnorm_silu", "geglu")}
OWN = "DIVE_KERNELS_TABLE"  # names another table, which the benchmark made on the user's GPU
SHIPPED = Path(__file__).with_name("table.json")


def measured(
    op: str, capability: int, dtype: torch.dtype, key: Mapping[str, int], work: int
) -> dict[str, float] | None:
    """Returns the milliseconds by implementation of the entry nearest in `work`; None if this key was not measured."""
    name = str(dtype).removeprefix("torch.")
    fitting = [
        entry
        for entry in _entries(os.environ.get(OWN) or str(SHIPPED))
        if (entry["op"], entry["capability"], entry["dtype"], entry["key"]) == (op, capability, name, dict(key))
    ]
    if not fitting:
        return None
    times: dict[str, float] = min(fitting, key=lambda entry: abs(math.log(entry["work"] / max(work, 1))))["ms"]
    return times


def unmeasured(op: str, capability: int, dtype: torch.dtype, able: bool) -> str | None:
    """Returns "fused" where `BY_TRAFFIC` has our kernel and it can run, else None: the library's."""
    return "fused" if able and dtype.itemsize == 2 and op in BY_TRAFFIC.get(capability, ()) else None


def fastest(times: Mapping[str, float] | None, offered: Sequence[str], unmeasured: str) -> str:
    """Returns the fastest of `offered`, or `unmeasured` if none of them was timed."""
    timed = {name: times[name] for name in offered if times and name in times}
    return min(timed, key=lambda name: timed[name]) if timed else unmeasured


@cache
def _entries(path: str) -> list[dict[str, Any]]:
    try:
        data = json.loads(Path(path).read_text())
        listed: list[dict[str, Any]] = data["entries"]
        for entry in listed:
            if not (float(entry["work"]) > 0 and all(float(ms) > 0 for ms in entry["ms"].values())):
                raise ValueError(f"a time or size is not above 0 in {entry}")
            _ = entry["op"], entry["capability"], entry["dtype"], entry["key"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path}: no table of kernel measurements ({type(error).__name__}: {error}); make it with "
            f"python -m benchmarks.kernels, or unset {OWN}"
        ) from error
    return listed
