"""Kills a command before one of its file operations, runs it again, and compares with a run that nothing disturbed.

Every run is a child forked from one server process (multiprocessing's "forkserver"), so that the imports are paid once
and no thread of the caller is torn by the fork. An audit hook counts what Python does to files
below the run's folder: opening for writing, renaming, removing, linking, making and removing folders.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from dive_fast import cli
from dive_fast.io import sha256_file

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FAILED = 70  # the exit code of a traceback
TIME_LIMIT = 300  # seconds of a run; more is a fault
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.crash.preload", __name__])
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")


Command = Callable[[list[str]], None]


@dataclass(frozen=True)
class Case:
    """A command line and the files that its folder holds before; `{0}` in either is the folder of inputs.

    `start` maps names in the run's folder to inputs that are copied there. `varies` are patterns of files that two runs
    write differently: times, and logs of times.
    """

    name: str
    line: str
    start: dict[str, str] = field(default_factory=dict)
    varies: tuple[str, ...] = ()
    command: Command = cli.main


@dataclass(frozen=True)
class Outcome:
    """How one killed run went: the operation, and what was wrong after the rerun ("" for nothing)."""

    operation: int
    wrong: str


class CountedOperations:
    """Counts file operations below `root`, and kills the process before the one of number `last`."""

    def __init__(self, root: Path, last: int | None) -> None:
        self.root, self.last, self.count = str(root), last, 0
        self._lock = threading.Lock()

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._changes(event, arguments):
            return
        with self._lock:
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)

    def _changes(self, event: str, arguments: tuple[object, ...]) -> bool:
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & WRITES:
                return False
        elif event not in CHANGES:
            return False
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        text = os.fsdecode(path)
        return not text.startswith("/") or text.startswith(self.root)  # a relative name may be of an open folder


def run(case: Case, inputs: Path, folder: Path, last: int | None = None) -> tuple[int, int]:
    """Runs the command in `folder` in a child: exit code (negative: the signal), and the number of file operations."""
    log, counted = folder.with_name("log.txt"), folder.with_name("count.txt")
    words = case.line.format(inputs).split()
    child = SERVER.Process(target=_child, args=(case.command, words, folder, last, log, counted))
    child.start()
    child.join()
    code = child.exitcode
    assert code is not None, "a child that was waited for has ended"
    return code, int(counted.read_text()) if code == 0 else 0


def _child(command: Command, words: list[str], folder: Path, last: int | None, log: Path, counted: Path) -> None:
    signal.alarm(TIME_LIMIT)
    os.chdir(folder)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    operations = CountedOperations(folder, last)
    sys.addaudithook(operations)
    code = FAILED
    try:
        command(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        if code == FAILED:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        counted.write_text(str(operations.count))
        os._exit(code)


def content(folder: Path, varies: Sequence[str]) -> dict[str, str]:
    """Every file and folder by name: its hash, a link's target, and nothing for those that vary."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = "" if any(fnmatch(name, pattern) for pattern in varies) else sha256_file(path)
        else:
            found[name] = "folder"
    return found


def fresh(case: Case, inputs: Path, folder: Path) -> None:
    """Makes `folder` what it is before the first run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in case.start.items():
        (shutil.copytree if (inputs / source).is_dir() else shutil.copyfile)(inputs / source, folder / name)


def outcomes(case: Case, inputs: Path, work: Path, kills: int, first: int = 0) -> Iterator[Outcome]:
    """Kills a case before up to `kills` of its operations, spread over all of them, from the `first` on."""
    folder = work / "run"
    fresh(case, inputs, folder)
    code, operations = run(case, inputs, folder)
    if code:
        raise RuntimeError(f"{case.name}: exit code {code}: {(work / 'log.txt').read_text()[-2000:]}")
    expected = content(folder, case.varies)
    count = min(kills, operations)
    for number in range(count):
        last = 1 + (first + number * operations // count) % operations
        fresh(case, inputs, folder)
        start = content(folder, ())
        code, _ = run(case, inputs, folder, last)
        wrong = "" if code in (0, -signal.SIGKILL) else f"the killed run ended with {code}"
        wrong = wrong or _lost(start, expected, content(folder, ()), folder)
        code, _ = run(case, inputs, folder)
        if code:
            wrong = wrong or f"the rerun ended with {code}: {(work / 'log.txt').read_text()[-600:]}"
        yield Outcome(last, wrong or difference(expected, content(folder, case.varies)))


def _lost(start: dict[str, str], expected: dict[str, str], found: dict[str, str], folder: Path) -> str:
    """Names a file of the start that a kill left nowhere, though the new one is not there."""
    kept = set(found.values())
    for name, value in start.items():
        if name not in found and expected.get(name) == value and value not in kept:
            return f"{name} was lost"
        replaced = found.get(name) in (expected.get(name), value)
        if not replaced and value not in kept and expected.get(name):
            return f"{name} was lost"
    return ""


def difference(expected: dict[str, str], found: dict[str, str]) -> str:
    """What is too much, missing or other, in words; "" for nothing."""
    kinds = {
        "left behind": sorted(set(found) - set(expected)),
        "lost": sorted(set(expected) - set(found)),
        "other": sorted(name for name in set(found) & set(expected) if found[name] != expected[name]),
    }
    return "; ".join(f"{kind}: {', '.join(names[:5])}" for kind, names in kinds.items() if names)
