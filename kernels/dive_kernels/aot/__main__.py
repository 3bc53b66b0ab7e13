"""Compiles every kernel into the folder OUT; `make kernels` runs it through CMake.

`--check-budgets FOLDER` fails on a kernel that spills or takes more registers than budgets.json allows.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dive_kernels.aot import budgets, nvcc, triton_kernels
from dive_kernels.aot.build import compile_jobs, finish, processors, triton_jobs
from dive_kernels.chips import ARCHITECTURES
from dive_kernels.package import Kernel, Package, read

TRITON = "Triton kernels"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.check:
        reason = triton_kernels.missing()
        return _complain(reason) if reason else 0
    if options.budgets_of:
        print(json.dumps(budgets.used(read(options.budgets_of).kernels), indent=2))
        return 0
    if options.check_budgets:
        kernels = read(options.check_budgets).kernels
        excesses = budgets.excesses(kernels, budgets.load())
        if not excesses:
            print(f"{len(kernels)} kernels within their budgets of registers, none spills")
        return _complain(*excesses) if excesses else 0
    if options.out is None:
        return _complain("OUT is missing. Name the folder for the kernels.")
    package, failed = compile_all(options)
    chips = ", ".join(f"sm_{architecture}" for architecture in package.architectures)
    print(f"{len(package.kernels)} kernels for {chips or 'no architecture'} in {package.folder}")
    for what, why in package.skipped[: len(package.skipped) - len(failed)]:
        print(f"skipped: {what}: {why}")
    return _complain(*(f"{name}: {why}" for name, why in failed)) if failed else 0


def compile_all(options: argparse.Namespace) -> tuple[Package, list[tuple[str, str]]]:
    """Compiles what this machine can; returns the package, and the kernels that failed with their reasons."""
    options.out.mkdir(parents=True, exist_ok=True)
    kernels: list[Kernel] = []
    skipped: list[tuple[str, str]] = []
    failed: list[tuple[str, str]] = []
    why_not = options.no_triton or triton_kernels.missing()
    if why_not:
        skipped.append((TRITON, why_not))
    else:
        from dive_kernels.aot.examples import LEFT_OUT

        jobs = [job for job in triton_jobs(options.arch) if _wanted(job.name, options.only)]
        kernels, failed = compile_jobs(
            jobs, options.out, triton_kernels.compiler, triton_kernels.compile_job, options.jobs, print
        )
        skipped.append(LEFT_OUT)
    compiler = options.nvcc or nvcc.find()
    if options.no_cuda or compiler is None:
        skipped.append((nvcc.WHAT, options.no_cuda or "no nvcc found"))
    else:
        more, unknown = nvcc.compile_all(compiler, options.arch, options.out)
        kernels += [kernel for kernel in more if _wanted(kernel.name, options.only)]
        skipped += unknown
    return finish(options.out, kernels, [*skipped, *failed]), failed


def _wanted(name: str, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dive_kernels.aot", description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", help="folder for the kernels and kernels.json")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these kernels, e.g. 'geglu-*-fp16-sm90'")
    parser.add_argument("--jobs", type=int, default=processors(), help="processes, default one a core")
    parser.add_argument("--no-triton", metavar="WHY", help="leave Triton kernels out; the reason goes into the index")
    parser.add_argument("--nvcc", help="CUDA compiler, default the one on PATH or in CUDA_HOME")
    parser.add_argument("--no-cuda", metavar="WHY", help="leave CUDA C++ kernels out; the reason goes into the index")
    parser.add_argument("--check", action="store_true", help="fail with the reason if Triton cannot compile here")
    parser.add_argument("--check-budgets", type=Path, metavar="FOLDER", help="fail where a kernel outgrew its budget")
    parser.add_argument("--budgets-of", type=Path, metavar="FOLDER", help="print the registers in use, as budgets.json")
    return parser


def _complain(*lines: str) -> int:
    for line in lines:
        print(f"dive_kernels.aot: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
