"""The whole folder: what is to be compiled, in parallel, and only what has changed."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from dive_kernels.aot.job import Job
from dive_kernels.package import INDEX, Kernel, Package, read, write

EVERY = 10.0  # seconds between lines of progress


def triton_jobs(architectures: Sequence[int]) -> list[Job]:
    """Every Triton compilation, each once: two examples may need the same one."""
    from dive_kernels.aot.examples import EXAMPLES
    from dive_kernels.sources import source_hash

    jobs: dict[tuple[object, ...], Job] = {}
    names: set[str] = set()
    for architecture in architectures:
        for examples in EXAMPLES:
            for example in examples(architecture):
                for launch in example.launches:
                    job = Job.of(example, launch, architecture, source_hash(launch.kernel))
                    if (job.identity, architecture) not in jobs:
                        if job.name in names:
                            raise ValueError(f"two kernels would be called {job.name}; tell them apart in the key")
                        jobs[job.identity, architecture] = job
                        names.add(job.name)
    return list(jobs.values())


def earlier(out: Path) -> dict[str, Kernel]:
    """Kernels of an earlier build whose files are still what the index says, by build hash."""
    if not (out / INDEX).is_file():
        return {}
    try:
        package = read(out)
    except ValueError:  # written by another version: everything is compiled anew
        return {}
    return {kernel.build: kernel for kernel in package.kernels if _intact(package, kernel)}


def compile_jobs(
    jobs: Sequence[Job],
    out: Path,
    compiler: Callable[[int], str],
    compile_job: Callable[[Job, Path], Kernel],
    processes: int,
    say: Callable[[str], None],
) -> tuple[list[Kernel], list[tuple[str, str]]]:
    """The kernels, and which failed with the reason. Progress is said at the end and every `EVERY` seconds."""
    begin = time.perf_counter()
    before = earlier(out)
    reused = [(job, before[key]) for job in jobs if (key := job.build(compiler(job.architecture))) in before]
    kernels = [job.named_like(kernel) for job, kernel in reused]
    names = {job.name for job, _ in reused}
    waiting = [job for job in jobs if job.name not in names]
    failed: list[tuple[str, str]] = []
    with ProcessPoolExecutor(max(1, min(processes, len(waiting))), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(compile_job, job, out): job for job in waiting}
        spoken = begin
        for done, future in enumerate(as_completed(futures), 1):
            try:
                kernels.append(future.result())
            except ValueError as error:  # said at the end, all of them, and fails the build
                failed.append((futures[future].name, str(error)))
            if time.perf_counter() - spoken > EVERY:
                spoken = time.perf_counter()
                say(f"{done} of {len(waiting)} kernels compiled")
    say(f"{len(waiting) - len(failed)} kernels compiled, {len(reused)} kept, {time.perf_counter() - begin:.0f} s")
    return kernels, failed


def finish(out: Path, kernels: Iterable[Kernel], skipped: Iterable[tuple[str, str]]) -> Package:
    """Writes the index, last, and removes what an earlier index named and this one does not."""
    old = {file for kernel in earlier(out).values() for file in _files(kernel)}
    package = Package(out, tuple(kernels), tuple(skipped))
    write(package)
    for name in old - {file for kernel in package.kernels for file in _files(kernel)}:
        (out / name).unlink()
    return package


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _files(kernel: Kernel) -> list[str]:
    return [binary.name for binary in (kernel.cubin, kernel.ptx) if binary is not None]


def _intact(package: Package, kernel: Kernel) -> bool:
    try:
        for binary in (kernel.cubin, kernel.ptx):
            if binary is not None:
                package.read(binary)
    except ValueError:
        return False
    return True
