"""Why a kernel or an op cannot take its inputs: every reason at once, each with the value and the limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dive_kernels import nvrtc
from dive_kernels.launch import INTERPRETER
from dive_kernels.package import MAKE, has_cuda_python, installed
from dive_kernels.run import capability, has_triton, interpreted

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def why_not_here(
    tensors: Mapping[str, Tensor], types: Sequence[torch.dtype] = FLOATS, language: str = "triton"
) -> list[str]:
    """Returns why no kernel of ours runs on these tensors here: missing packages, devices, types.

    `language` of the kernel, "triton" or "cuda", decides what can compile it, and whether an interpreter runs it on a CPU.
    """
    reasons = []
    cpu = language == "triton" and interpreted()
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda" and not cpu:
            reasons.append(f"needs CUDA tensors, {name} is on {tensor.device}")
        if tensor.dtype not in types:
            known = " or ".join(str(t).removeprefix("torch.") for t in types)
            reasons.append(f"needs {known}, {name} is {tensor.dtype}")
    return why_no_code(next(iter(tensors.values())).device, language) + reasons


def why_no_code(device: torch.device, language: str) -> list[str]:
    """Returns one reason if this machine has neither a compiler for the kernels nor kernels compiled ahead of time."""
    if language == "triton" and has_triton():
        return []
    if language == "cuda" and nvrtc.missing() is None:
        return []
    lacking = "triton (pip install 'dive-fast[gpu]')" if language == "triton" else nvrtc.missing()
    try:
        package = installed()
    except ValueError as error:
        return [str(error)]
    if package is not None and has_cuda_python():
        chip = capability(device)
        if chip == INTERPRETER or any(k.runs_on(chip) or k.assembles_for(chip) for k in package.kernels):
            return []
        built = ", ".join(f"sm_{architecture}" for architecture in package.architectures)
        return [f"{device} is sm_{chip}, {package.folder} has kernels for {built or 'nothing'} ({MAKE} makes more)"]
    return [f"needs {lacking}, or kernels compiled ahead of time ({MAKE}) with cuda-python; neither is here"]


def against_fused(
    op: str, impl: str, offered: Sequence[str], misfits: Sequence[str], why_not_fused: Callable[[], list[str]]
) -> list[str]:
    """Returns the reasons against the kernel that `auto` has to know; an implementation asked for by name needs none.

    Raises `ValueError` if the op has no such `impl`, for `misfits` (what no implementation takes), and if `impl` is
    "fused" and the kernel cannot run.
    """
    choose(op, impl, offered)
    refuse(op, misfits)
    reasons = why_not_fused() if impl in ("auto", "fused") else []
    if impl == "fused":
        refuse(f"{op}: impl='fused' cannot run", reasons)
    return reasons


def refuse(op: str, reasons: Sequence[str]) -> None:
    """Raises `ValueError` with every reason, if there is one."""
    if reasons:
        raise ValueError(f"{op}: {'; '.join(reasons)}")


def choose(op: str, impl: str, offered: Sequence[str]) -> None:
    """Raises `ValueError` if the op does not offer this implementation."""
    if impl not in offered:
        raise ValueError(f"{op}: impl must be {', '.join(offered[:-1])} or {offered[-1]}, got {impl!r}")


def present(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Returns the tensors that are not None, by name."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def one_place(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names the tensors that are not on the device of the first."""
    (first, where), *others = ((name, tensor.device) for name, tensor in tensors.items())
    return [f"{name} is on {device}, {first} on {where}" for name, device in others if device != where]


def one_type(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names the tensors that are not floating point, or not of the first one's type."""
    reasons = []
    first, dtype = next((name, tensor.dtype) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            reasons.append(f"{name} must be floating point, got {tensor.dtype}")
        elif tensor.dtype != dtype:
            reasons.append(f"{name} is {tensor.dtype}, {first} is {dtype}")
    return reasons


def last_strides(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names the tensors whose last dimension has gaps between its elements."""
    return [
        f"needs a last stride of 1, {name} has strides {tuple(tensor.stride())}"
        for name, tensor in tensors.items()
        if tensor.ndim and tensor.shape[-1] > 1 and tensor.stride(-1) != 1
    ]
