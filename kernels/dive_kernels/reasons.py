"""Why a kernel cannot take what it is given, in words with value and limit; all reasons at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dive_kernels.launch import has_triton, interpreted

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def why_not_here(tensors: Mapping[str, Tensor], types: Sequence[torch.dtype] = FLOATS) -> list[str]:
    """Why no kernel of ours runs on these tensors here: what is installed, devices, types."""
    reasons = [] if has_triton() else ["needs triton, which is not installed (pip install 'dive-fast[gpu]')"]
    for name, tensor in tensors.items():
        if tensor.device.type != "cuda" and not interpreted():
            reasons.append(f"needs CUDA tensors, {name} is on {tensor.device}")
        if tensor.dtype not in types:
            reasons.append(
                f"needs {' or '.join(str(t).removeprefix('torch.') for t in types)}, {name} is {tensor.dtype}"
            )
    return reasons


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
