"""Runs a launch: a kernel compiled ahead of time, or else one that NVRTC or Triton compiles here."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache

import torch

from dive_kernels import driver, nvrtc, package
from dive_kernels.launch import INTERPRETER, Launch
from dive_kernels.package import Code
from dive_kernels.sources import is_cuda


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def capability(device: torch.device) -> int:
    """Compute capability as 90 for 9.0; `INTERPRETER` for a device that is no NVIDIA GPU."""
    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def run(*launches: Launch) -> None:
    """Enqueues launches in order on torch's current stream of their device.

    Raises `ValueError` with every reason if a kernel is neither compiled ahead of time nor can be compiled here.
    """
    for launch in launches:
        if 0 not in launch.grid:
            _run(launch)


def match(launch: Launch, chip: int) -> tuple[Code | None, list[str]]:
    """Returns the code compiled ahead of time for a launch, or None and every reason why there is none.

    Raises `ValueError` if the folder of kernels is broken, or named by the user and missing.
    """
    installed = package.installed()
    if installed is None:
        place = package.folder() or f"{package.FOLDER}="
        return None, [f"no kernels compiled ahead of time in {place} ({package.MAKE} makes them)"]
    reasons = launch.misaligned()
    if not package.has_cuda_python():
        reasons.append("needs cuda-python, which is not installed (pip install 'dive-fast[gpu]')")
    code = package.code(installed.folder, launch.identity, chip)
    if isinstance(code, str):
        return None, [*reasons, code]
    return (None, reasons) if reasons else (code, [])


def with_triton(launch: Launch) -> None:
    """Runs a launch by Triton, which compiles the kernel at its first call, or interprets it."""
    module, _, name = launch.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    kernel[launch.grid](
        **launch.arguments,
        **launch.constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,  # Triton 3.10 flips the default
    )


def _run(launch: Launch) -> None:
    if launch.device.type != "cuda":
        with_triton(launch)  # interpreted
        return
    chip = capability(launch.device)
    code, reasons = match(launch, chip)
    if code is None and is_cuda(launch.kernel):
        code, more = nvrtc.compiled(launch.kernel, chip)
        reasons += more
    elif code is None and has_triton():
        with_triton(launch)
        return
    elif code is None:
        reasons.append("compiling it here needs triton (pip install 'dive-fast[gpu]')")
    if code is None:
        raise ValueError(f"{launch.kernel} cannot run: {'; '.join(reasons)}")
    driver.start(launch, code)
