"""A GPU's first hour: four calls of at most nine minutes, `python -m benchmarks.first_gpu A --out FOLDER` (make first-gpu).

A: what the machine has; the kernels' tests, then the smoke test of the engines on the pocket model; copy and product rates;
every op against its library at 72 rows, with the tiles that may be better. B: the UNet of Stable Diffusion 1.5's size,
random weights, at 72 rows: eager, compiled, with our kernels, each with its error and the kernels that take its time; the
best one over 50 steps; the decoder. C: max-autotune of the best. D: FP8, its tests first, against the best.

A call stops at the first check that fails, or when its time is up, and exits with 1. All that it prints is in
FOLDER/CALL.log, every number in FOLDER/CALL.jsonl, as it comes; A also writes FOLDER/table.json, for
DIVE_KERNELS_TABLE. Predictions stand beside the results. `--device cpu` rehearses the same steps on the pocket model, with
the kernels' references and without a compiler (the smoke test traces): its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch
from torch import nn

from benchmarks import kernels as ops
from benchmarks.machine import metadata
from benchmarks.unet_variants import (
    GFLOP,
    KERNELS,
    VARIANTS,
    Subject,
    Variant,
    first_call,
    group_norm_statistics,
    kernels_of,
    milliseconds,
)
from dive_fast.bench.roofline import Peaks, measure_peaks
from dive_fast.environment import doctor, packages
from dive_fast.unet.fp8 import PARTS

# What an H200 should show: lowest, highest, unit (docs/log.md says how they were found).
PREDICTED = {
    "copy": (4100, 4500, "GB/s"),
    "product": (770, 800, "TFLOP/s"),
    "eager": (230, 280, "TFLOP/s"),
    "bank": (340, 390, "TFLOP/s"),
    "bank, all kernels": (400, 430, "TFLOP/s"),
    "GroupNorm statistics by Inductor": (3, 9, "ms"),
    "50 steps, decoder apart": (9.4, 12.8, "images/s"),
    "decoder": (3, 4, "ms an image"),
    "gain of max-autotune": (0, 5, "%"),
    "FP8, products": (400, 500, "TFLOP/s"),
    "FP8": (480, 640, "TFLOP/s"),
    "FP8, GEGLU too": (480, 640, "TFLOP/s"),
    "gain of FP8": (12, 50, "%"),
}
SECONDS = 540
STEPS = {"cuda": 50, "cpu": 2}
ROWS = {"cuda": 72, "cpu": 4}
REPEATS = {"cuda": 20, "cpu": 1}
PROFILED = 40  # kernels that are kept of a variant
SMOKE = "tests/engines/test_smoke.py"
FP8_TESTS = ("tests/kernels/test_fp8.py", "tests/kernels/test_groupnorm_fp8_fused.py")
# The plan's tile on compute capability 9.0, and those that give more blocks a multiprocessor there.
TILES = {
    "attention": ((128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 4, 3)),
    "geglu": ((128, 128, 64, 8, 4), (128, 64, 64, 8, 3)),
}


class FailedCheck(Exception):
    """Why a call stops."""


class TimeUp(BaseException):
    """The call's time is up; no `except Exception` of a compiler may swallow it."""


class Session:
    """One call: where it runs, and what it writes."""

    def __init__(self, device: str, out: Path, call: str, best: Variant) -> None:
        self.device, self.out, self.best = torch.device(device), out, best
        self.gpu = device == "cuda"
        self.dtype = torch.float16 if self.gpu else torch.float32
        self.peaks: Peaks | None = None
        self.numbers = out / f"{call}.jsonl"
        self.rows, self.repeats, self.steps = ROWS[device], REPEATS[device], STEPS[device]

    def record(self, kind: str, /, **values: Any) -> None:
        """Adds a line to the numbers."""
        with self.numbers.open("a") as stream:
            stream.write(json.dumps({"kind": kind, **values}, default=str) + "\n")

    def result(self, name: str, value: float, unit: str) -> None:
        """Prints and records a number, its prediction beside it."""
        self.record("result", name=name, value=value, unit=unit, predicted=PREDICTED.get(name))
        print(f"{name:<34} {value:>9.2f} {unit:<12} {self._beside(name, value)}".rstrip())

    def _beside(self, name: str, value: float) -> str:
        if name not in PREDICTED:
            return ""
        low, high, unit = PREDICTED[name]
        verdict = "below" if value < low else "above" if value > high else "as predicted"
        return f"predicted {low:g} to {high:g} {unit}{f': {verdict}' if self.gpu else ''}"


def machine(session: Session) -> None:
    """What doctor finds; a GPU must be usable by torch and by Triton."""
    rows = doctor.rows(packages.collect(session.out))
    print(doctor.table(rows))
    session.record("machine", **metadata(("torch", "triton", "diffusers", "transformers")))
    needed = ("torch-cuda", "triton-kernels") if session.gpu else ("torch-cpu",)
    lacking = [f"{row.name}: {row.reason}" for row in rows if row.name in needed and row.state != "ok"]
    if lacking:
        raise FailedCheck("; ".join(lacking))


def kernel_tests(session: Session) -> None:
    """But for those of FP8, whose failure must not cost the others their measurements."""
    _pytest(session, "-m", "gpu", "-k", "not fp8", *(["-n", "8"] if session.gpu else []), "tests/kernels")


def smoke_test(session: Session) -> None:
    _pytest(session, "-m", "gpu" if session.gpu else "not gpu", SMOKE)


def _pytest(session: Session, *arguments: str) -> None:
    """Runs tests in a process of their own, whose output is printed as it comes; one that fails is the last."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations", "5", *arguments]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            for line in process.stdout or ():
                print(line, end="")
        except BaseException:
            process.kill()
            raise
    session.record("tests", command=command[1:], rc=process.returncode, seconds=time.perf_counter() - began)
    if process.returncode:
        raise FailedCheck(f"pytest {' '.join(arguments)} exits with {process.returncode}")


def rates(session: Session) -> None:
    """Copies and matrix products, the peaks that all else is held to."""
    session.peaks = peaks = measure_peaks(session.device, session.dtype)
    session.record("peaks", gemms=peaks.gemms)
    session.result("copy", peaks.gbytes, "GB/s")
    session.result("product", peaks.tflops, "TFLOP/s")


@torch.inference_mode()
def op_table(session: Session) -> None:
    """Every op at its levels by each implementation but Inductor; ours must run on a GPU, and be right."""
    found = []
    for op in ops.OPS:
        for record in _bench(session).records(op):
            session.record("op", **record)
            found.append(record)
            if session.gpu and "fused" not in record["ms"]:
                raise FailedCheck(f"{op}, {record['what']}: {record['left out'].get('fused')}")
    if session.gpu:
        ops.into_table(session.out / "table.json", found, ops.facts_of("cuda", "float16", session.repeats))


@torch.inference_mode()
def tiles(session: Session) -> None:
    """Attention and GEGLU of the second level in several tiles; one that is wrong is named, and no failure."""
    bench = _bench(session)
    for op, candidates in TILES.items():
        for case in ops.cases(op, bench.make, bench.rows, bench.levels[1:2]):
            for tile in candidates:
                session.record("tile", tile=tile, **bench.measure(ops.in_tile(case, tile)))


def _bench(session: Session) -> ops.Bench:
    return ops.Bench(session.device.type, session.dtype, session.rows, session.repeats, session.peaks, inductor=False)


@torch.inference_mode()
def unet(session: Session) -> None:
    """Each variant: compiled, checked, timed, profiled; then the best one as a whole."""
    subject = Subject(session.rows, session.device)
    allowed, times, networks = 0.0, {}, {}
    for variant in VARIANTS:
        networks[variant] = subject.network(variant)
        times[variant], error = _variant(session, subject, variant, networks[variant])
        allowed = allowed or 2 * error + 1e-7
        if not error <= allowed:
            raise FailedCheck(f"{variant.name}: off by {error:.1e} from float32, {allowed:.1e} is allowed")
    best = min((variant for variant in VARIANTS if variant.bank), key=times.__getitem__)
    print(f"best: {best.name}")
    seconds, _ = first_call(lambda: subject.sample(networks[best], session.steps))
    session.result("50 steps, decoder apart", subject.images / seconds * session.steps / 50, "images/s")
    for ours in (False, True):
        call = subject.decoder(ours)
        first_call(call)
        name = "decoder, our GroupNorm" if ours else "decoder"
        session.result(name, milliseconds(call, 3, session.device) / subject.images, "ms an image")


def _variant(session: Session, subject: Subject, variant: Variant, network: nn.Module) -> tuple[float, float]:
    """Milliseconds of a call, and its error."""
    call = subject.call(network, variant)
    seconds, out = first_call(call)
    error, taken = subject.error(out), milliseconds(call, session.repeats, session.device)
    print(f"{variant.name}: first call {seconds:.1f} s, then {taken:.2f} ms, error {error:.1e}")
    session.record("variant", name=variant.name, seconds=seconds, ms=taken, error=error)
    session.result(variant.name, session.rows * GFLOP / taken, "TFLOP/s")
    found = kernels_of(call, session.device)
    session.record("profile", name=variant.name, kernels=found[:PROFILED], ms=sum(row["ms"] for row in found))
    for row in found[:8]:
        print(f"  {row['ms']:>8.3f} ms {row['calls']:>5} x {row['kernel'][:100]}")
    if variant.bank and not variant.ops:
        session.result("GroupNorm statistics by Inductor", group_norm_statistics(found), "ms")
    return taken, error


@torch.inference_mode()
def autotune(session: Session) -> None:
    """The best variant in torch.compile's default mode, then by max-autotune."""
    subject = Subject(session.rows, session.device)
    times = {}
    for mode in ("default", "max-autotune-no-cudagraphs"):
        variant = Variant(f"{session.best.name}, {mode}", True, session.best.ops, mode)
        times[mode], _ = _variant(session, subject, variant, subject.network(variant))
    session.result("gain of max-autotune", 100 * (times["default"] / times[mode] - 1), "%")


def fp8_tests(session: Session) -> None:
    """Products and convolutions by the libraries, and norms that write e4m3."""
    marks = ["-m", "gpu", FP8_TESTS[1]] if session.gpu else ["-m", "not gpu"]
    _pytest(session, *marks, FP8_TESTS[0])


@torch.inference_mode()
def fp8(session: Session) -> None:
    """The best variant in half precision, then with FP8, each as far from float32 as its emulation: at most twice that."""
    subject, ops = Subject(session.rows, session.device), session.best.ops
    half = Variant(f"{session.best.name}, default", True, ops, "default")
    taken, error = _variant(session, subject, half, subject.network(half))
    without = tuple(op for op in ops if op != "geglu")
    for name, parts, used in (
        ("FP8, products", PARTS[:1], ops),
        ("FP8", PARTS, ops),
        ("FP8, GEGLU too", PARTS, without),
    ):
        emulated = Variant(name, True, used, fp8=parts, fp8_impl="reference")
        _, out = first_call(subject.call(subject.network(emulated), emulated))
        wanted = subject.error(out)
        variant = Variant(name, True, used, "default", fp8=parts)
        faster, found = _variant(session, subject, variant, subject.network(variant))
        session.result(f"gain of {name}", 100 * (taken / faster - 1), "%")
        print(f"  off by {found:.1e} from float32, emulated {wanted:.1e}, half precision {error:.1e}")
        session.record("fp8", name=name, error=found, emulated=wanted, half=error)
        if not found <= 2 * wanted:
            raise FailedCheck(f"{name}: off by {found:.1e} from float32, {2 * wanted:.1e} is allowed")


Step = Callable[[Session], None]
CALLS: dict[str, tuple[Step, ...]] = {
    "A": (machine, kernel_tests, smoke_test, rates, op_table, tiles),
    "B": (machine, unet),
    "C": (machine, autotune),
    "D": (machine, fp8_tests, fp8),
}


class Tee:
    """What is printed goes to the terminal and, line by line, to a file."""

    def __init__(self, *streams: TextIO) -> None:
        self.streams = streams

    def write(self, text: str) -> None:
        for stream in self.streams:
            stream.write(text)
            stream.flush()

    def flush(self) -> None:
        pass


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeUp` in the block when its time is up."""

    def stop(*_: object) -> NoReturn:
        raise TimeUp(f"the call's {seconds:g} s are up")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(call: str, session: Session, seconds: float) -> bool:
    """Runs the steps of a call until one fails; False then."""
    began = time.perf_counter()
    name = ""
    try:
        with time_limit(seconds):
            for name, step in ((step.__name__, step) for step in CALLS[call]):
                print(f"== {call} {name}, after {time.perf_counter() - began:.0f} s", flush=True)
                step(session)
    except (FailedCheck, TimeUp) as failed:
        print(f"== {call} {name} FAILED: {failed}")
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the log that comes back
        print(f"{traceback.format_exc()}\n== {call} {name} FAILED: {error}")
    else:
        print(f"== {call} is done, after {time.perf_counter() - began:.0f} s")
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calls", nargs="+", choices=tuple(CALLS))
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--device", choices=tuple(ROWS), default="cuda")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each call")
    names = {variant.name: variant for variant in VARIANTS if variant.bank}
    parser.add_argument("--best", choices=tuple(names), default=KERNELS.name, help="what C and D compile: B's best")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for call in options.calls:
        session = Session(options.device, options.out, call, names[options.best])
        session.numbers.unlink(missing_ok=True)
        with (options.out / f"{call}.log").open("w") as log, redirect_stdout(Tee(sys.stdout, log)):  # type: ignore[type-var]
            if not run(call, session, options.seconds):
                sys.exit(1)


if __name__ == "__main__":
    main()
