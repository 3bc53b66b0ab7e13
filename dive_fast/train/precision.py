"""Mixed precision: half-precision arithmetic over float32 weights that learn.

Torch's own autocast and loss scaling, which accelerate's `Accelerator` wraps; see `parallel` for why it is not used.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from dive_fast.train.config import Precision
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch


def half(precision: Precision) -> torch.dtype | None:
    """The half-precision type, None for float32 throughout."""
    import torch

    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def check_precision(precision: Precision, device: str) -> None:
    """Raises `InputError` when `device`, "cpu" or "cuda", cannot train in this precision."""
    import torch

    if precision == "fp16" and device == "cpu":
        raise InputError("mixed precision fp16 needs a GPU; on a CPU choose bf16 or no")
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"mixed precision bf16: {torch.cuda.get_device_name()} does not compute in it; choose fp16")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What forward passes run in; it does nothing for "no"."""
    import torch

    dtype = half(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler | None:
    """Keeps the gradients of fp16, whose range is small, from vanishing; None where nothing is to be scaled."""
    import torch

    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def halve_frozen(network: torch.nn.Module, precision: Precision) -> None:
    """Stores in half precision, in place, what autocast would round to it at each use: the weights of linear and
    convolution layers that do not learn. The numbers stay those of autocast; norms, embeddings and LoRA stay float32.
    """
    import torch

    dtype = half(precision)
    if dtype is None:
        return
    for name, layer in network.named_modules():
        rounded = isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in name
        if rounded and not any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            layer.to(dtype)
