"""Starts compiled kernels with cuda-python, on torch's current stream."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dive_kernels.launch import Launch
from dive_kernels.package import Code

STATIC_SHARED = 48 << 10  # bytes of shared memory that a function may have without asking for more
SCALARS: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}


def start(launch: Launch, code: Code) -> None:
    """Enqueues a launch. The first launch of a code on a device loads it, which must not happen during graph capture."""
    from cuda.core import LaunchConfig, Stream
    from cuda.core import launch as enqueue

    device = launch.device
    with torch.cuda.device(device):
        function = _function(code, device.index)
        config = LaunchConfig(grid=launch.grid, block=32 * launch.warps, shmem_size=code.shared_bytes)
        stream = Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
        enqueue(stream, config, function, *packed(launch, code.null_pointers))


def packed(launch: Launch, null_pointers: int) -> list[Any]:
    """Returns the arguments for cuda-python: ints as pointers, scalars in the C type of the kernel's parameter."""
    typed = zip(launch.arguments.values(), launch.signature.values(), strict=True)
    values = [value.data_ptr() if isinstance(value, Tensor) else SCALARS[kind](value) for value, kind in typed]
    return values + [0] * null_pointers


@cache
def _function(code: Code, device: int) -> Any:
    """Returns the loaded function, with its shared memory allowed on this device."""
    from cuda.bindings import driver
    from cuda.core import ObjectCode

    load = ObjectCode.from_ptx if code.is_ptx else ObjectCode.from_cubin
    function = load(code.image, name=code.function).get_kernel(code.function)
    if code.shared_bytes > STATIC_SHARED:
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        error, handle = driver.cuDeviceGet(device)
        if error == driver.CUresult.CUDA_SUCCESS:
            (error,) = driver.cuKernelSetAttribute(attribute, code.shared_bytes, function.handle, handle)
        if error != driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(
                f"{code.function}: no {code.shared_bytes} bytes of shared memory on GPU {device}, "
                f"the driver answers {error.name}"
            )
    return function
