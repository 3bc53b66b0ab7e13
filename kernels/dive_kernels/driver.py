"""Starts compiled kernels with cuda-python, on torch's current stream."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from dive_kernels.launch import Launch, Repeat
from dive_kernels.package import Code

STATIC_SHARED = 48 << 10  # bytes of shared memory that a function may have without asking for more
SCALARS: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}


def prepared(launch: Launch, code: Code) -> Repeat:
    """Returns what enqueues the launch on its device, which must be the current one.

    The first call for a code and device loads the code, which must not happen during graph capture.
    """
    from cuda.bindings import driver

    device = launch.device
    function = _function(code, device.index)
    grid, block = (*launch.grid, 1, 1)[:3], (32 * launch.warps, 1, 1)
    nulls = (0,) * code.null_pointers
    pointer = ctypes.c_void_p
    types = (*(SCALARS.get(kind, pointer) for kind in launch.signature.values()), *(pointer for _ in nulls))
    success, enqueue = driver.CUresult.CUDA_SUCCESS, driver.cuLaunchKernel  # by cuda.core it takes three times as long

    def repeat(values: Sequence[Any]) -> None:
        stream = torch.cuda.current_stream(device).cuda_stream
        (error,) = enqueue(function, *grid, *block, code.shared_bytes, stream, ((*values, *nulls), types), 0)
        if error != success:
            raise RuntimeError(f"{code.function}: the driver cannot start it and answers {error.name}")

    return repeat


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
    return driver.CUfunction(int(function.handle))  # the driver starts a CUkernel by this type
