"""Compiles the CUDA C++ kernels at run time by NVRTC, through cuda-python, if they were not compiled ahead of time."""

from __future__ import annotations

from functools import cache

from dive_kernels.package import Code, has_cuda_python
from dive_kernels.sources import source_file


@cache
def missing() -> str | None:
    """Returns what compiling here lacks, with the remedy; None if nothing."""
    if not has_cuda_python():
        return "cuda-python (pip install 'dive-fast[gpu]') for NVRTC"
    from cuda.bindings import nvrtc

    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:  # the bindings could not load the library
        return "the library NVRTC (pip install nvidia-cuda-nvrtc)"
    return None


@cache
def compiled(kernel: str, capability: int) -> tuple[Code | None, list[str]]:
    """Returns the code of one function for a compute capability, or None and why not. Takes about a second, and no GPU."""
    lacking = missing()
    if lacking:
        return None, [f"compiling it here needs {lacking}"]
    from cuda.core import Program, ProgramOptions

    source = source_file(kernel)
    options = ProgramOptions(
        arch=f"sm_{capability}", std="c++17", fma=False, include_path=str(source.parent), name=source.name
    )
    try:
        code = Program(source.read_text(), "c++", options).compile("cubin")
    except Exception as error:  # noqa: BLE001 - an NVRTC too old for the chip raises a private class
        return None, [f"NVRTC cannot compile it here ({' '.join(str(error).split())[:300]})"]
    return Code(kernel.partition(":")[2], bytes(code.code)), []
