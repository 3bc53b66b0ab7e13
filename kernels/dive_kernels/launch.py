"""One kernel call as data. `run` starts it, `aot` compiles it ahead of time.

`<op>/plan.py` makes a `Launch` from tensors. Tensors on the device "meta" suffice for `aot`, so tiles, argument order and
constants are written once for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dive_kernels.package import identity
from dive_kernels.sources import is_cuda

ALIGNMENT = 16  # bytes of a pointer, elements of a stride, in kernels compiled ahead of time
# torch's type: as Triton writes a pointer to it
POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    torch.float8_e4m3fn: "*fp8e4nv",
}
# Enqueues a launch again, on the current device and stream, with its arguments' values in order, tensors as addresses.
Repeat = Callable[[Sequence[Any]], None]
INTERPRETER = 0  # the compute capability of Triton's interpreter, which has no limits of a chip


@dataclass(frozen=True)
class Launch:
    """A grid of programs of one kernel.

    `kernel` is "module:function", or "folder/file.cu:function" for CUDA C++. `arguments` are the run-time ones (tensors,
    ints, floats) in the function's order, `constants` its `tl.constexpr`. Kernels compiled ahead of time require that an int
    named `*_stride` is a multiple of `ALIGNMENT`.
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
        """Returns the type of each run-time argument, as Triton writes it."""
        return {name: _type_of(value) for name, value in self.arguments.items()}

    @property
    def identity(self) -> tuple[Any, ...]:
        """Returns what distinguishes one compilation from another for the same architecture."""
        return identity(self.kernel, tuple(self.signature.items()), self.constants, self.warps, self.stages)

    def misaligned(self) -> list[str]:
        """Names the arguments that a kernel compiled ahead of time cannot take. CUDA C++ takes any alignment."""
        if is_cuda(self.kernel):
            return []
        found = []
        for name, value in self.arguments.items():
            if isinstance(value, Tensor) and value.data_ptr() % ALIGNMENT:
                found.append(f"{name} lies at an address that is no multiple of {ALIGNMENT}")
            elif name.endswith("_stride") and value % ALIGNMENT:
                found.append(f"{name} {value} is no multiple of {ALIGNMENT}")
        return found


def _type_of(value: Tensor | int | float) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
