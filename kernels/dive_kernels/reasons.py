"""Why a kernel cannot take what it is given, in words with value and limit; all reasons at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    """Why no kernel of ours runs on these tensors here: what is installed, devices, types.

    `language` is what the op's kernel is written in, "triton" or "cuda": what can compile it, and whether on a CPU an
    interpreter can run it.
    """
    reasons = []
    cpu = language == "triton" and interpreted()
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda" and not cpu:
            reasons.append(f"needs CUDA tensors, {name} is on {tensor.device}")
        if tensor.dtype not in types:
            reasons.append(
                f"needs {' or '.join(str(t).removeprefix('torch.') for t in types)}, {name} is {tensor.dtype}"
            )
    return why_no_code(next(iter(tensors.values())).device, language) + reasons


def why_no_code(device: torch.device, language: str) -> list[str]:
    """Why there is neither a compiler for our kernels nor kernels compiled ahead of time, as one reason; or nothing."""
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


def refuse(op: str, reasons: Sequence[str]) -> None:
    """`ValueError` with every reason, if there is one."""
    if reasons:
        raise ValueError(f"{op}: {'; '.join(reasons)}")


def choose(op: str, impl: str, offered: Sequence[str]) -> None:
    """`ValueError` for an implementation that the op has not."""
    if impl not in offered:
        raise ValueError(f"{op}: impl must be {', '.join(offered[:-1])} or {offered[-1]}, got {impl!r}")


def one_place(tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors that are not where the first one is."""
    (first, where), *others = ((name, tensor.device) for name, tensor in tensors.items())
    return [f"{name} is on {device}, {first} on {where}" for name, device in others if device != where]
