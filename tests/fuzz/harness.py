"""Runs cases: a damaged input and the command that reads it, held to sentences, 60 seconds and 2 GB.

A case is a kind and a seed, and always damages the same file in the same way. In a worker of its own (`Worker`) a case may
hang or crash: the worker is killed, and the next case has another one.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch

from dive_fast import cli
from dive_fast.types import DiveError
from tests.fuzz.kinds import KINDS, Kind
from tests.fuzz.mutations import copy_tree, mutate

SECONDS, MEGABYTES = 60, 2048  # of a case; more is a fault
IDLE = 0.02  # seconds of the processor in `SECONDS`; with less a process waits for what never comes
ECHOED = 200  # characters of a value in a message; more is a fault
CASES_OF_A_WORKER = 400  # whatever a case leaves in memory
BY_NAME = {kind.name: kind for kind in KINDS}
_RUN = re.compile(rf"(\w)\1{{{ECHOED - 1}}}")  # the values that `mutations` puts in are long runs
ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `ACCEPTED`, `REFUSED`, or a fault and its details; its time, and the memory that it took."""

    kind: str
    seed: int
    what: str
    details: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0

    @property
    def failed(self) -> bool:
        return self.what not in (ACCEPTED, REFUSED)


class Hang(BaseException):
    """A case took longer than `SECONDS`; no Exception, so that nobody catches it."""


def prepare(kind: Kind, seed: int, inputs: Path, folder: Path) -> str:
    """Makes the folder of a case, and returns the name of the file that was damaged in it; seed -1 damages none."""
    random = Random(f"{kind.name} {seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, pattern in kind.start.items():
        copy_tree(random.choice(sorted(inputs.glob(pattern))), folder / name)
    files = sorted({file for pattern in kind.files for file in folder.glob(pattern) if file.is_file()})
    alike: dict[str, list[Path]] = {}  # files whose names differ in numbers count as one
    for file in files:
        alike.setdefault(re.sub(r"\d+", "", file.relative_to(folder).as_posix()), []).append(file)
    path = random.choice(alike[random.choice(sorted(alike))])
    if seed >= 0:
        mutate(path, random)
    return path.relative_to(folder).as_posix()


def run_case(kind: Kind, seed: int, inputs: Path, folder: Path) -> Outcome:
    """Runs one case in this process, in which it must neither crash nor hang in foreign code."""
    said = io.StringIO()
    damaged = ""
    before, start = _reset_peak(), time.perf_counter()
    try:
        with _limits(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("default")  # tests turn warnings into errors
            damaged = prepare(kind, seed, inputs, folder)
            what, details = _run(kind, inputs, folder)
    except Exception:  # noqa: BLE001  the fuzzer itself is at fault
        what, details = "fuzzer", traceback.format_exc(limit=-3)
    except Hang:
        what, details = "hang", f"longer than {SECONDS} s"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = f"{said.getvalue()}{details}"
    seconds, megabytes = time.perf_counter() - start, max(0.0, _peak() - before)
    if what in (ACCEPTED, REFUSED):
        if megabytes > MEGABYTES:
            what, details = "memory", f"{megabytes:,.0f} MB"
        elif found := _RUN.search(text):
            what, details = "echo", text[max(0, found.start() - 300) : found.start() + ECHOED]
    return Outcome(kind.name, seed, what, f"{damaged}: {details}", seconds, megabytes)


def _run(kind: Kind, inputs: Path, folder: Path) -> tuple[str, str]:
    """What came of it, and the message or the traceback."""
    try:
        if kind.read is None:
            cli.main(kind.line.format(inputs, folder).split())
        else:
            kind.read(inputs, folder)
    except SystemExit as stop:
        return (REFUSED, "") if stop.code else (ACCEPTED, "")
    except DiveError as error:
        return REFUSED, str(error)
    except Exception:  # noqa: BLE001  every kind of it is the fault that is looked for
        return "traceback", traceback.format_exc(limit=-6)[-3000:]
    return ACCEPTED, ""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Raises `Hang` in the block after `SECONDS` of work or of waiting; torch's random numbers stay as they were."""

    start = last = time.process_time()

    def stop(*_: object) -> None:
        """Called every `SECONDS`: a process that waits gets no time of the processor, one on a busy machine little."""
        nonlocal last
        now, before, last = time.process_time(), last, time.process_time()
        if now - before < IDLE or now - start > SECONDS:
            raise Hang
        signal.alarm(SECONDS)

    shown, old = warnings.showwarning, signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        warnings.showwarning = shown


def _reset_peak() -> float:
    """Forgets the largest memory so far, where Linux allows it; returns the present one in MB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


class Worker:
    """A process that runs cases one after the other; what it prints beside them goes to `log`."""

    def __init__(self, inputs: Path, work: Path) -> None:
        self.inputs, self.work = inputs, work
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.inputs, self.work))
        self._process.start()
        theirs.close()
        self._left = CASES_OF_A_WORKER
        self._pipe.recv()  # it has imported everything

    def run(self, kind: str, seed: int) -> Outcome:
        if not self._left:
            self.stop()
            self._start()
        self._left -= 1
        try:
            self._pipe.send((kind, seed))
            if self._pipe.poll(20 * SECONDS):  # in foreign code no signal stops a case
                outcome: Outcome = self._pipe.recv()
                return outcome
            what = "hang"
        except (EOFError, OSError):
            what = "crash"
            self._process.join(5)
        self.stop()
        code = self._process.exitcode
        self._start()
        return Outcome(
            kind, seed, what, f"exit code {code}; {(self.work / 'log.txt').read_text(errors='replace')[-500:]}"
        )

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, inputs: Path, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    handle = os.open(work / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(handle, stream)
    _limit_memory()
    torch.set_num_threads(1)
    pipe.send(None)
    number = 0
    while True:
        kind, seed = pipe.recv()
        number += 1  # a folder of its own, as nobody's caches know it
        pipe.send(run_case(BY_NAME[kind], seed, inputs, work / f"{os.getpid()}-{number}"))


def _limit_memory() -> None:
    """Keeps a case from taking the machine's memory: three times what is a fault already."""
    with contextlib.suppress(ImportError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (3 * MEGABYTES << 20, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def cases(count: int, kinds: list[Kind], first: int = 0) -> Iterator[tuple[str, int]]:
    """(kind, seed) of `count` cases, the kinds in turn."""
    for number in range(count):
        yield kinds[number % len(kinds)].name, first + number // len(kinds)


def summary(outcomes: list[Outcome], kinds: list[Kind]) -> list[str]:
    """A line of counts for each kind, and one of what the slowest and the largest case took."""
    rows: dict[str, dict[str, Any]] = {kind.name: {"cases": 0, ACCEPTED: 0, REFUSED: 0} for kind in kinds}
    for outcome in outcomes:
        rows[outcome.kind]["cases"] += 1
        if not outcome.failed:
            rows[outcome.kind][outcome.what] += 1
    lines = [
        f"{name}: {row['cases']:,} cases, {row[ACCEPTED]:,} accepted, {row[REFUSED]:,} refused, "
        f"{row['cases'] - row[ACCEPTED] - row[REFUSED]:,} failed"
        for name, row in rows.items()
    ]
    slowest, largest = (max(outcomes, key=lambda outcome: getattr(outcome, name)) for name in ("seconds", "megabytes"))
    return [
        *lines,
        f"slowest: {slowest.seconds:.1f} s ({slowest.kind} {slowest.seed}); "
        f"most memory: {largest.megabytes:,.0f} MB ({largest.kind} {largest.seed})",
    ]
