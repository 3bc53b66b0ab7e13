"""CUDA C++ kernels -> cubins and resource figures, by nvcc. Needs neither torch nor Triton, so any build can do it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dive_kernels.aot.resources import resources
from dive_kernels.cuda_kernels import CUDA_KERNELS, OPTIONS, CudaKernel
from dive_kernels.package import Binary, Kernel, binary, write_atomically
from dive_kernels.sources import source_file, source_hash

WHAT = "CUDA C++ kernels"


def find() -> str | None:
    """nvcc on PATH, or of the toolkit that CUDA_HOME names."""
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(os.environ.get("CUDA_HOME", "")) / "bin"))


def compile_all(nvcc: str, architectures: Sequence[int], out: Path) -> tuple[list[Kernel], list[tuple[str, str]]]:
    """Every CUDA C++ kernel for what this nvcc knows; and what it does not, with the reason."""
    version, known = _version(nvcc), _known(nvcc)
    sources = sorted({source_file(kernel.kernel) for kernel in CUDA_KERNELS})
    kernels: list[Kernel] = []
    skipped: list[tuple[str, str]] = []
    newest = max((architecture for architecture in architectures if architecture in known), default=0)
    for architecture in architectures:
        if architecture not in known:
            skipped.append((f"{WHAT} for sm_{architecture}", f"nvcc {version} does not know it"))
            continue
        for source in sources:
            functions = [kernel for kernel in CUDA_KERNELS if source_file(kernel.kernel) == source]
            ptx = _ptx(nvcc, source, architecture, out) if architecture == newest else None
            kernels += _compile(nvcc, version, source, functions, architecture, out, ptx)
    return kernels, skipped


def _compile(
    nvcc: str,
    version: str,
    source: Path,
    functions: Sequence[CudaKernel],
    architecture: int,
    out: Path,
    ptx: Binary | None,
) -> list[Kernel]:
    """One cubin with all functions of a file."""
    options = ["-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    cubin, said = _run(nvcc, source, options, out, f"{source.stem}-sm_{architecture}.cubin")
    reports = dict(re.findall(r"entry function '(\w+)'(.*?)(?=Compiling|\Z)", said, re.DOTALL))
    return [
        replace(_kernel(function, reports[function.function], version, architecture, cubin), ptx=ptx)
        for function in functions
    ]


def _ptx(nvcc: str, source: Path, architecture: int, out: Path) -> Binary:
    """The same as PTX, which a driver can assemble for chips that are newer than any cubin."""
    options = ["-ptx", f"-arch=compute_{architecture}"]
    return _run(nvcc, source, options, out, f"{source.stem}-compute_{architecture}.ptx")[0]


def _run(nvcc: str, source: Path, options: Sequence[str], out: Path, name: str) -> tuple[Binary, str]:
    """One file in the folder, and what the compiler said."""
    temporary = out.resolve() / f".{name}.{os.getpid()}"  # the compiler runs in the source's folder
    command = [nvcc, *options, *OPTIONS, "-o", str(temporary), source.name]
    result = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"nvcc cannot compile {source.name} to {name}: {result.stderr.strip()[:2000]}")
    content = temporary.read_bytes()
    temporary.unlink()
    write_atomically(out / name, content)
    return binary(name, content), result.stderr


def _kernel(function: CudaKernel, report: str, version: str, architecture: int, cubin: Binary) -> Kernel:
    registers, spills = resources(report)
    hashed = source_hash(function.kernel)
    compiler = f"nvcc {version} {' '.join(OPTIONS)}"
    layout = "".join(f"-{name}{value}" for name, value in function.key.items())
    return Kernel(
        name=f"{function.op}{layout}-{function.dtype}-sm{architecture}",
        op=function.op,
        dtype=function.dtype,
        key=function.key,
        architecture=architecture,
        target=f"sm_{architecture}",
        kernel=function.kernel,
        function=function.function,
        arguments=function.arguments,
        constants={},
        warps=function.warps,
        stages=function.stages,
        shared_bytes=0,
        registers=registers,
        spill_bytes=spills,
        null_pointers=0,
        source_sha256=hashed,
        compiler=compiler,
        ptx_version="",
        build=hashlib.sha256(json.dumps([function.kernel, architecture, hashed, compiler]).encode()).hexdigest(),
        cubin=cubin,
    )


def _version(nvcc: str) -> str:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", said)
    if found is None:
        raise ValueError(f"{nvcc} --version names no release: {said.strip()[:200]!r}")
    return found[1]


def _known(nvcc: str) -> set[int]:
    """Architectures that this nvcc compiles for."""
    said = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return {int(number) for number in re.findall(r"sm_(\d+)\b", said)}
