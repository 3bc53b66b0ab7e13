"""What the benchmarks share: options, what a results file says of its machine, calls timed in rounds, our loop."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.bench.machine import commit, processor, versions
from dive_fast.bench.timing import interleaved, ratio
from dive_fast.io import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from dive_fast.engines import Conditioning, Engine
    from dive_fast.sampling import Schedule

__all__ = ["interleaved", "median_ratio", "medians", "metadata", "options_of", "sample", "timed", "write"]


def options_of(doc: str | None, **counts: int) -> argparse.ArgumentParser:
    """A parser that explains the script by its docstring; its options are `--out` and a number by each name of `counts`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    for name, default in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser


def metadata(packages: Sequence[str], **more: Any) -> dict[str, Any]:
    machine = f"{processor()}, {os.cpu_count()} cores"
    return {"machine": machine, "versions": versions(packages), "commit": commit(), **more}


def write(out: Path | None, result: Any) -> None:
    if out is not None:
        write_json(out, result)


def median_ratio(theirs: Sequence[float], ours: Sequence[float], digits: int = 2) -> float:
    """Median over the rounds of their time over ours."""
    return round(ratio(theirs, ours).median, digits)


def medians(times: Mapping[str, Sequence[float]], digits: int | None = None) -> dict[str, float]:
    found = {name: statistics.median(values) for name, values in times.items()}
    return found if digits is None else {name: round(value, digits) for name, value in found.items()}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what `work` returns."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def sample(
    engine: Engine, conditioning: Conditioning, index: Tensor, noise: Tensor, schedule: Schedule, guidance: float
) -> Tensor:
    """Latents of prompts `index` in `conditioning`, whose first prompt is the empty one."""
    from dive_fast.sampling import dpmpp_2m, guided

    eps = guided(lambda x, t, i: engine.eps(x, t, conditioning, i), index, 0, guidance)
    return dpmpp_2m(eps, noise, schedule)
