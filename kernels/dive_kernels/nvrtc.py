"""Compiles the CUDA C++ kernels at run time, where no package of compiled ones is at hand: NVRTC through cuda-python."""

from __future__ import annotations

from functools import cache

from dive_kernels.package import Code, has_cuda_python
from dive_kernels.sources import source_file


@cache
def missing() -> str | None:
    """What compiling here needs and lacks, with the remedy; None if nothing."""
    if not has_cuda_python():
        return "cuda-python (pip install 'dive-fast[gpu]') for NVRTC"
    from cuda.bindings import nvrtc

    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:  # the bindings' word for a library that is not there
        return "the library NVRTC (pip install nvidia-cuda-nvrtc)"
    return None


@cache
def compiled(kernel: str, capability: int) -> tuple[Code | None, list[str]]:
    """The code of one function for a compute capability, or None and why not. NVRTC needs no GPU; takes about a second."""
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
    except Exception as error:  # noqa: BLE001 - an NVRTC too old for the chip; the class of that is private
        return None, [f"NVRTC cannot compile it here ({' '.join(str(error).split())[:300]})"]
    return Code(kernel.partition(":")[2], bytes(code.code)), []
