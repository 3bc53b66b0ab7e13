"""Convolutions of e4m3 numbers by cuDNN's graph API (package nvidia-cudnn-frontend, imported as cudnn). Never run yet.

Without a GPU, cuDNN 9.28 was seen to propose plans for these graphs on sm_90 and to compile their kernels (docs/log.md).
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

MULTIPLE = 16  # channels that cuDNN's FP8 kernels take at a time
INSTALL = "nvidia-cudnn-frontend (pip install 'dive-fast[fp8]')"


class NoPlan(RuntimeError):
    """cuDNN cannot compute a convolution."""


class Planned(NamedTuple):
    """A graph that is built for one size, the names of its tensors, and the bytes of scratch memory that it takes."""

    graph: Any
    tensors: tuple[Any, ...]  # x, weight, scale, bias, output
    scratch: int


def missing() -> str | None:
    """Returns what to install, None if the package is there."""
    return None if importlib.util.find_spec("cudnn") else f"needs {INSTALL}"


def convolved(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, out: Tensor) -> None:
    """Writes the convolution into `out`; arguments as `convolution_reference`, all channels_last, on torch's stream."""
    import cudnn

    handle = _handle(x.device)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(x.device).cuda_stream)
    planned = _planned(x.device, tuple(x.shape), tuple(weight.shape), out.dtype)
    scratch = torch.empty(planned.scratch, dtype=torch.uint8, device=x.device)
    given = dict(zip(planned.tensors, (x, weight, scale, bias, out), strict=True))
    planned.graph.execute(given, scratch, handle=handle)


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


@cache
def _planned(device: torch.device, x: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype) -> Planned:
    import cudnn

    floats, number = cudnn.data_type.FLOAT, cudnn.data_type.FP8_E4M3
    made = {"handle": _handle(device), "intermediate_data_type": floats, "compute_data_type": floats}
    graph = cudnn.pygraph(io_data_type=number, **made)
    kernel, vector = [weight[-1] // 2] * 2, (1, weight[0], 1, 1)
    given = [_tensor(graph, name, size, number) for name, size in (("x", x), ("weight", weight))]
    given += [_tensor(graph, name, vector, floats) for name in ("scale", "bias")]
    sums = graph.conv_fprop(image=given[0], weight=given[1], padding=kernel, stride=[1, 1], dilation=[1, 1])
    out = graph.add(a=graph.mul(a=sums, b=given[2]), b=given[3])
    out.set_output(True).set_data_type(dtype)
    try:
        with torch.cuda.device(device):
            graph.build([cudnn.heur_mode.A])
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise NoPlan(f"cuDNN has no FP8 convolution of {x} by {weight} here: {why}") from error
    return Planned(graph, (*given, out), graph.get_workspace_size())


def _tensor(graph: Any, name: str, size: tuple[int, ...], data_type: Any) -> Any:
    """A tensor that lies channels last."""
    _, channels, height, width = size
    stride = (channels * height * width, 1, width * channels, channels)
    return graph.tensor(name=name, dim=size, stride=stride, data_type=data_type)
