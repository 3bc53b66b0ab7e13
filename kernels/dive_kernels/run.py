"""Runs a launch: a kernel compiled ahead of time, or else one that NVRTC or Triton compiles here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dive_kernels import driver, nvrtc, package
from dive_kernels.launch import INTERPRETER, Launch, Repeat
from dive_kernels.package import Code
from dive_kernels.sources import is_cuda

_unloadable: dict[tuple[str, torch.device], str | None] = {}  # by kernel and device


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
            start(launch)


def start(launch: Launch) -> Repeat | None:
    """Enqueues a launch as `run` does; returns what enqueues it again, None if Triton interpreted it."""
    if launch.device.type != "cuda":
        return with_triton(launch)
    with on(launch.device):
        code = _code(launch)
        if code is None:
            return with_triton(launch)
        repeat = driver.prepared(launch, code)
        repeat([value.data_ptr() if isinstance(value, Tensor) else value for value in launch.arguments.values()])
        return repeat


def why_not_loaded(launch: Launch) -> str | None:
    """Returns why the code of a launch cannot be had or loaded here, None if it can; warns of that once a kernel and device.

    For `auto`, whose other implementation serves then.
    """
    key = (launch.kernel, launch.device)
    if key not in _unloadable:
        try:
            with on(launch.device):
                code = _code(launch)
                if code is not None:
                    driver.prepared(launch, code)
            _unloadable[key] = None
        except Exception as error:  # noqa: BLE001 - cuda-python's own exceptions share no base class but this
            _unloadable[key] = why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            warnings.warn(f"{launch.kernel} is not used, torch's own kernels are: {why}", RuntimeWarning, stacklevel=2)
    return _unloadable[key]


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a CUDA device the current one, if it is not."""
    return nullcontext() if torch.cuda.current_device() == device.index else torch.cuda.device(device)


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


def with_triton(launch: Launch) -> Repeat | None:
    """Runs a launch by Triton, which compiles the kernel at its first call, or interprets it; returns as `start`."""
    module, _, name = launch.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    compiled = kernel[launch.grid](
        **launch.arguments,
        **launch.constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,  # Triton 3.10 flips the default
    )
    if compiled is None:
        return None
    constants = [launch.constants[name] for name in kernel.arg_names[len(launch.arguments) :]]
    enqueue = compiled[(*launch.grid, 1, 1)[:3]]
    return lambda values: enqueue(*values, *constants)


def _code(launch: Launch) -> Code | None:
    """Returns the code of a launch; None if Triton is to compile it. Raises `ValueError` as `run`."""
    chip = capability(launch.device)
    code, reasons = match(launch, chip)
    if code is None and is_cuda(launch.kernel):
        code, more = nvrtc.compiled(launch.kernel, chip)
        reasons += more
    elif code is None and has_triton():
        return None
    elif code is None:
        reasons.append("compiling it here needs triton (pip install 'dive-fast[gpu]')")
    if code is None:
        raise ValueError(f"{launch.kernel} cannot run: {'; '.join(reasons)}")
    return code
