"""Builds the folder of kernels: in parallel, and only what has changed."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from dive_kernels.aot.job import Job
from dive_kernels.package import INDEX, Binary, Kernel, Package, read, write

EVERY = 10.0  # seconds between lines of progress


def triton_jobs(architectures: Sequence[int]) -> list[Job]:
    """Returns every Triton compilation once: two examples may need the same one."""
    from dive_kernels.aot.examples import EXAMPLES

    jobs: dict[tuple[object, ...], Job] = {}
    for architecture in architectures:
        for examples in EXAMPLES:
            for example in examples(architecture):
                for job in example.jobs(architecture):
                    jobs.setdefault((job.identity, architecture), job)
    names = Counter(job.name for job in jobs.values())
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"two kernels would be called {twice[0]}; tell them apart in the key")
    return list(jobs.values())


def earlier(out: Path) -> dict[str, Kernel]:
    """Returns the kernels of an earlier build whose files still match its index, by build hash."""
    if not (out / INDEX).is_file():
        return {}
    try:
        package = read(out)
    except ValueError:  # written by another version: compile everything
        return {}
    return {kernel.build: kernel for kernel in package.kernels if _intact(package, kernel)}


def compile_jobs(
    jobs: Sequence[Job],
    out: Path,
    compiler: Callable[[int], str],
    compile_job: Callable[[Job, Path], Kernel],
    processes: int,
    log: Callable[[str], None],
) -> tuple[list[Kernel], list[tuple[str, str]]]:
    """Returns the kernels, and the failed jobs with their reasons. Logs progress every `EVERY` seconds and at the end."""
    begin = time.perf_counter()
    before = earlier(out)
    reused = [(job, before[key]) for job in jobs if (key := job.build(compiler(job.architecture))) in before]
    kernels = [job.named_like(kernel) for job, kernel in reused]
    names = {job.name for job, _ in reused}
    waiting = [job for job in jobs if job.name not in names]
    failed: list[tuple[str, str]] = []
    with ProcessPoolExecutor(max(1, min(processes, len(waiting))), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(compile_job, job, out): job for job in waiting}
        logged = begin
        for done, future in enumerate(as_completed(futures), 1):
            try:
                kernels.append(future.result())
            except ValueError as error:  # the caller reports all of them and fails the build
                failed.append((futures[future].name, str(error)))
            if time.perf_counter() - logged > EVERY:
                logged = time.perf_counter()
                log(f"{done} of {len(waiting)} kernels compiled")
    log(f"{len(waiting) - len(failed)} kernels compiled, {len(reused)} kept, {time.perf_counter() - begin:.0f} s")
    return kernels, failed


def finish(out: Path, kernels: Iterable[Kernel], skipped: Iterable[tuple[str, str]]) -> Package:
    """Writes the index, last, and removes the files that only an earlier index names."""
    old = {file.name for kernel in earlier(out).values() for file in _files(kernel)}
    package = Package(out, tuple(kernels), tuple(skipped))
    write(package)
    for name in old - {file.name for kernel in package.kernels for file in _files(kernel)}:
        (out / name).unlink()
    return package


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _files(kernel: Kernel) -> list[Binary]:
    return [binary for binary in (kernel.cubin, kernel.ptx) if binary is not None]


def _intact(package: Package, kernel: Kernel) -> bool:
    try:
        for binary in _files(kernel):
            package.read(binary)
    except ValueError:
        return False
    return True
