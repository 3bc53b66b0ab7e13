"""Compiles Triton kernels to cubins, PTX and resource figures. Needs no GPU: Triton brings its own assembler."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from dive_kernels.aot.job import Job, resources
from dive_kernels.chips import PTX_VERSIONS, shared_limit
from dive_kernels.package import Kernel, binary, write_atomically
from dive_kernels.sources import source_hash

ALIGNED = [["tt.divisibility", 16]]  # what `Launch.misaligned` checks before a start
ENTRY = re.compile(r"\.entry\s+\w+\s*\(([^)]*)\)")
# Without line information: a path in a cubin would make it another file on each machine.
ENVIRONMENT = {"TRITON_DISABLE_LINE_INFO": "1", "TRITON_DUMP_PTXAS_LOG": "1"}


def missing() -> str | None:
    """Returns why nothing can be compiled here, or None."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed; pip install 'dive-fast[torch,kernels]'"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 replaces the compiler by an interpreter; unset it"
    return None


def compiler(architecture: int) -> str:
    """Returns the compiler, with the options that change the result."""
    triton = importlib.import_module("triton")
    return f"triton {triton.__version__}, ptx {PTX_VERSIONS[architecture]}, fp fusion, no line info"


def compile_job(job: Job, out: Path) -> Kernel:
    """Compiles one kernel and writes its files. Raises `ValueError` if the result cannot run on its architecture."""
    with tempfile.TemporaryDirectory() as cache:  # a cached result would come without its log
        try:
            compiled, log = _compile(job, cache)
        except Exception as error:  # noqa: BLE001 - other processes cannot unpickle Triton's own classes
            raise ValueError(f"Triton cannot compile it: {_brief(error)}") from None
    if source_hash(job.kernel) != job.source_sha256:
        raise ValueError("its source changed while it was compiled; compile again")
    meta, ptx, cubin = compiled.metadata, compiled.asm["ptx"], compiled.asm["cubin"]
    limit = shared_limit(job.architecture)
    if meta.shared > limit:
        raise ValueError(f"needs {meta.shared} bytes of shared memory, sm_{job.architecture} has {limit}")
    if meta.global_scratch_size or meta.profile_scratch_size:
        raise ValueError("needs scratch memory in global memory, which the loader does not provide")
    registers, spills = resources(log)
    files = {"cubin": binary(f"{job.name}.cubin", cubin)}
    write_atomically(out / files["cubin"].name, cubin)
    if job.keep_ptx:
        files["ptx"] = binary(f"{job.name}.ptx", ptx.encode())
        write_atomically(out / files["ptx"].name, ptx.encode())
    return Kernel.from_compilation(
        job,
        target=_directive(ptx, "target").split(",")[0],
        function=meta.name,
        shared_bytes=meta.shared,
        registers=registers,
        spill_bytes=spills,
        null_pointers=parameters(ptx) - len(job.arguments),
        compiler=compiler(job.architecture),
        ptx_version=_directive(ptx, "version"),
        build=job.build(compiler(job.architecture)),
        **files,
    )


def parameters(ptx: str) -> int:
    """Returns the number of parameters of the one kernel in a PTX text."""
    entry = ENTRY.search(ptx)
    if entry is None:
        raise ValueError("the PTX has no kernel")
    return entry[1].count(".param")


def _compile(job: Job, cache: str) -> tuple[Any, str]:
    """Returns what Triton compiled, and its assembler's report, which Triton prints."""
    os.environ.update(ENVIRONMENT, TRITON_CACHE_DIR=cache)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, _, name = job.kernel.partition(":")
    signature = {**dict(job.arguments), **dict.fromkeys(job.constants, "constexpr")}
    kernel = getattr(importlib.import_module(module), name)
    order = {name: i for i, name in enumerate(kernel.arg_names)}
    started = [name for name in order if name not in job.constants]
    if set(order) != set(signature) or started != [name for name, _ in job.arguments]:
        raise ValueError(f"the plan's arguments {list(signature)} are not the kernel's {list(order)}, in order")
    aligned = [name for name, kind in job.arguments if kind.startswith("*") or name.endswith("_stride")]
    source = ASTSource(
        kernel,
        {name: signature[name] for name in order},
        constexprs=job.constants,
        attrs={(order[name],): ALIGNED for name in aligned},
    )
    options = {
        "num_warps": job.warps,
        "num_stages": job.stages,
        "ptx_version": PTX_VERSIONS[job.architecture],
        "enable_fp_fusion": True,
    }
    with contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = triton.compile(source, target=GPUTarget("cuda", job.architecture, 32), options=options)
    return compiled, log.getvalue()


def _brief(error: BaseException) -> str:
    """Returns the first and last line of the error at the bottom; between them Triton quotes the source."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {' ... '.join([*lines[:1], *lines[1:][-1:]])}"


def _directive(ptx: str, name: str) -> str:
    found = re.search(rf"^\.{name}\s+(\S+)", ptx, re.MULTILINE)
    if found is None:
        raise ValueError(f"the PTX names no .{name}")
    return found[1]
