"""One kernel call as data, and the one place that runs it: a cubin compiled ahead of time, or else Triton.

`<op>/plan.py` makes a `Launch` of tensors (of device "meta" too, which is how `aot` knows what to compile), so that tiles,
argument order and constants are written once for both ways.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dive_kernels import nvrtc
from dive_kernels.package import identity, match
from dive_kernels.sources import is_cuda

ALIGNMENT = 16  # bytes of a pointer, elements of a stride; what kernels compiled ahead of time may rely on
# By torch's name: as Triton writes a pointer to it.
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
INTERPRETER = 0  # as a compute capability: Triton's interpreter, which knows no limits of a chip


@dataclass(frozen=True)
class Launch:
    """A grid of programs of one kernel.

    `kernel` is "module:function", or "folder/file.cu:function" for CUDA C++. `arguments` are the run-time ones in the
    function's order (tensors, ints, floats), `constants` its `tl.constexpr`. An int named `*_stride` is a multiple of
    `ALIGNMENT` in what is compiled ahead of time. `device` is where it runs.
    """

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 2

    @property
    def device(self) -> torch.device:
        return next(value.device for value in self.arguments.values() if isinstance(value, Tensor))

    @property
    def signature(self) -> dict[str, str]:
        """Type of each run-time argument, as Triton writes it."""
        return {name: _type_of(value) for name, value in self.arguments.items()}

    @property
    def identity(self) -> tuple[Any, ...]:
        """What one compilation is for, next to the architecture."""
        return identity(self.kernel, tuple(self.signature.items()), self.constants, self.warps, self.stages)

    def misaligned(self) -> list[str]:
        """Arguments that what is compiled ahead of time cannot take, with their values. CUDA C++ takes any."""
        if is_cuda(self.kernel):
            return []
        found = []
        for name, value in self.arguments.items():
            if isinstance(value, Tensor) and value.data_ptr() % ALIGNMENT:
                found.append(f"{name} lies at an address that is no multiple of {ALIGNMENT}")
            elif name.endswith("_stride") and value % ALIGNMENT:
                found.append(f"{name} {value} is no multiple of {ALIGNMENT}")
        return found


def interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def capability(device: torch.device) -> int:
    """Compute capability as 90 for 9.0; `INTERPRETER` where there is no chip."""
    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def run(launch: Launch) -> None:
    """Enqueues `launch` on torch's current stream of its device, compiled ahead of time or else compiled here.

    `ValueError` with every reason where neither can be.
    """
    if 0 in launch.grid:
        return
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
    from dive_kernels.driver import start  # which knows Launch

    start(launch, code)


def with_triton(launch: Launch) -> None:
    """By Triton, which compiles the kernel at its first call, or interprets it."""
    module, _, name = launch.kernel.partition(":")
    kernel = getattr(importlib.import_module(module), name)
    kernel[launch.grid](
        **launch.arguments,
        **launch.constants,
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,  # Triton 3.10 flips the default
    )


def _type_of(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
