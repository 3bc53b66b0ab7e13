"""Compiles CUDA C++ kernels to cubins and resource figures by nvcc. Needs neither torch nor Triton."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dive_kernels.aot.job import resources
from dive_kernels.cuda_kernels import CUDA_KERNELS, OPTIONS, CudaKernel
from dive_kernels.package import Binary, Compilation, Kernel, binary, write_atomically
from dive_kernels.sources import source_file, source_hash

WHAT = "CUDA C++ kernels"


def find() -> str | None:
    """Returns nvcc on PATH or in CUDA_HOME."""
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(Path(os.environ.get("CUDA_HOME", "")) / "bin"))


def compile_all(nvcc: str, architectures: Sequence[int], out: Path) -> tuple[list[Kernel], list[tuple[str, str]]]:
    """Compiles every CUDA C++ kernel; returns the kernels, and the architectures that this nvcc does not know."""
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
            ptx = None
            if architecture == newest:  # a driver can assemble PTX for chips that are newer than any cubin
                options = ["-ptx", f"-arch=compute_{architecture}"]
                ptx, _ = _run(nvcc, source, options, out, f"{source.stem}-compute_{architecture}.ptx")
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
    """Compiles all functions of a file to one cubin."""
    options = ["-cubin", f"-arch=sm_{architecture}", "-Xptxas", "-v"]
    cubin, log = _run(nvcc, source, options, out, f"{source.stem}-sm_{architecture}.cubin")
    reports = dict(re.findall(r"entry function '(\w+)'(.*?)(?=Compiling|\Z)", log, re.DOTALL))
    return [_kernel(function, reports[function.function], version, architecture, cubin, ptx) for function in functions]


def _run(nvcc: str, source: Path, options: Sequence[str], out: Path, name: str) -> tuple[Binary, str]:
    """Writes one file into the folder; returns it and the compiler's messages."""
    temporary = out.resolve() / f".{name}.{os.getpid()}"  # the compiler runs in the source's folder
    command = [nvcc, *options, *OPTIONS, "-o", str(temporary), source.name]
    result = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ValueError(f"nvcc cannot compile {source.name} to {name}: {result.stderr.strip()[:2000]}")
    content = temporary.read_bytes()
    temporary.unlink()
    write_atomically(out / name, content)
    return binary(name, content), result.stderr


def _kernel(
    function: CudaKernel, report: str, version: str, architecture: int, cubin: Binary, ptx: Binary | None
) -> Kernel:
    registers, spills = resources(report)
    compiler = f"nvcc {version} {' '.join(OPTIONS)}"
    layout = "".join(f"-{name}{value}" for name, value in function.key.items())
    source = Compilation(
        **asdict(function),
        name=f"{function.op}{layout}-{function.dtype}-sm{architecture}",
        architecture=architecture,
        constants={},
        source_sha256=source_hash(function.kernel),
    )
    hashed = json.dumps([source.kernel, architecture, source.source_sha256, compiler])
    return Kernel.from_compilation(
        source,
        target=f"sm_{architecture}",
        function=function.function,
        shared_bytes=0,
        registers=registers,
        spill_bytes=spills,
        null_pointers=0,
        compiler=compiler,
        ptx_version="",
        build=hashlib.sha256(hashed.encode()).hexdigest(),
        cubin=cubin,
        ptx=ptx,
    )


def _version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", text)
    if found is None:
        raise ValueError(f"{nvcc} --version names no release: {text.strip()[:200]!r}")
    return found[1]


def _known(nvcc: str) -> set[int]:
    """Returns the architectures that this nvcc compiles for."""
    text = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    return {int(number) for number in re.findall(r"sm_(\d+)\b", text)}
