"""Another commit's speed against this working tree's, on this machine: fresh processes in rounds, on the same model.

Each round runs both trees; which goes first alternates. A new process samples what a process fixes (memory addresses, say),
so a difference counts only where it exceeds the range of the rounds.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dive_fast.bench import child
from dive_fast.bench.machine import SOURCE
from dive_fast.bench.timing import Ratio, ratio
from dive_fast.io import brief
from dive_fast.sampling.config import Sampling
from dive_fast.types import DiveError, InputError, shown, to_dict

THERE, HERE = "there", "here"
FEWEST_ROUNDS = 5  # by chance all of so few agree in one of 16 comparisons of equals; of more, more rarely
Advance = Callable[[str], object]


@dataclass(frozen=True)
class Task:
    """What is measured in every process; `repeats` UNet calls and `batches` batches of each row count."""

    model: str
    backend: str
    device: str
    rows: tuple[int, ...]
    sampling: Sampling
    threads: int | None = None
    repeats: int = 10
    batches: int = 3


@dataclass(frozen=True)
class Difference:
    """How many times as fast this working tree is as the other, round by round, and whether that is beyond the noise.

    `verdict`: faster or slower if every round says so, else "no difference beyond noise"; of fewer rounds than
    `FEWEST_ROUNDS` that agree "too few rounds to tell".
    """

    what: str
    rows: int
    ms_there: float
    ms_here: float
    faster: Ratio
    verdict: str


def other_tree(ref: str, target: Path, source: Path = SOURCE) -> str:
    """The files of a git ref, unpacked to `target` with the repository untouched; gives the commit's full hash.

    Raises `InputError` where `source` is no git checkout of this project, or the ref names no commit.
    """
    top = _git(source, "rev-parse", "--show-toplevel")
    if top is None or Path(top.decode().strip()).resolve() != source.resolve():
        raise InputError(
            f"--compare needs a git checkout of dive-fast, and {source} is none; clone the repository and install from it"
        )
    found = _git(source, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found is None:
        raise InputError(f"--compare {shown(ref)} names no commit of {source}; give a branch, a tag or a hash")
    commit = found.decode().strip()
    archive = _git(source, "archive", "--format=zip", commit)
    if archive is None:
        raise DiveError(f"--compare: git archive of {commit[:12]} failed; fetch the whole history of the checkout")
    with zipfile.ZipFile(io.BytesIO(archive)) as unpacked:
        unpacked.extractall(target)
    return commit


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where it fails, or is not installed."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def compare_trees(
    there: Path, task: Task, work: Path, rounds: int, here: Path = SOURCE, advance: Advance = lambda _: None
) -> list[Difference]:
    """`task` by both trees in alternating processes, `rounds` times. `work` is for what they make.

    Raises `DiveError` with what a process said where it failed: an old version may not know what is asked for.
    """
    if rounds < 1:
        raise InputError(f"--compare: rounds must be at least 1, got {rounds}")
    trees = {THERE: there, HERE: here}
    script = work / "child.py"  # apart from its folder, which holds modules with common names
    shutil.copyfile(str(child.__file__), script)
    times: dict[str, list[dict[str, Any]]] = {THERE: [], HERE: []}
    for number in range(rounds):
        for name in (THERE, HERE) if number % 2 == 0 else (HERE, THERE):
            times[name].append(_round(script, trees[name], name, task, work))
            advance(f"round {number + 1} of {rounds}, {name}")
    return [_difference(what, rows, times) for rows in task.rows for what in ("unet", "batch")]


def _round(script: Path, tree: Path, name: str, task: Task, work: Path) -> dict[str, Any]:
    own = work / name
    own.mkdir(exist_ok=True)
    wanted = {**to_dict(task), "work": str(own), "tree": str(tree)}
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(wanted)],
        capture_output=True,
        text=True,
        check=False,
        cwd=work,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        which = "the commit compared with" if name == THERE else "this working tree"
        raise DiveError(f"--compare: {which} cannot be measured with {task.backend}: it says {brief(said[0])}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not Path(found["source"]).resolve().is_relative_to(tree.resolve()):
        raise DiveError(f"--compare: the process measured {found['source']}, not {tree}; report this")
    return found


def _difference(what: str, rows: int, times: dict[str, list[dict[str, Any]]]) -> Difference:
    medians = {name: [statistics.median(t[what][str(rows)]) for t in rounds] for name, rounds in times.items()}
    found = ratio(medians[THERE], medians[HERE])
    agree = found.low > 1 or found.high < 1
    verdict = ("faster" if found.low > 1 else "slower") if agree else "no difference beyond noise"
    if agree and found.n < FEWEST_ROUNDS:
        verdict = "too few rounds to tell"
    there, here = (statistics.median(medians[name]) for name in (THERE, HERE))
    return Difference("UNet call" if what == "unet" else "batch", rows, there, here, found, verdict)


def regression(differences: Sequence[Difference], least: float) -> Difference | None:
    """The whole batches that lost most, if they are less than `least` times as fast and that is beyond the noise."""
    lost = [d for d in differences if d.what == "batch" and d.verdict == "slower" and d.faster.median < least]
    return min(lost, key=lambda d: d.faster.median, default=None)


def lines(differences: Sequence[Difference], commit: str) -> list[str]:
    """For a reader."""
    return [
        f"this working tree against {commit[:12]}, how many times as fast (lowest and highest round):",
        *(
            f"  {d.what:<9} {d.rows:>4} rows  {d.faster.median:.3f}x ({d.faster.low:.3f} to {d.faster.high:.3f} in "
            f"{d.faster.n} rounds), {d.ms_there:.4g} to {d.ms_here:.4g} ms: {d.verdict}"
            for d in differences
        ),
    ]
