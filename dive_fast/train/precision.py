"""Mixed precision: half-precision arithmetic with float32 trained weights, by torch's autocast and loss scaling."""

from __future__ import annotations

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
        raise InputError(f"mixed precision bf16: {torch.cuda.get_device_name()} does not support it; choose fp16")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of forward passes; disabled for "no"."""
    import torch

    dtype = half(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def loss_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Loss scaling, which keeps fp16 gradients from underflow; disabled for other precisions."""
    import torch

    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def halve_frozen(network: torch.nn.Module, precision: Precision) -> None:
    """Stores frozen linear and convolution weights in half precision, in place, which autocast would cast at each use.

    Outputs equal those of autocast; norms, embeddings and LoRA stay float32.
    """
    import torch

    dtype = half(precision)
    if dtype is None:
        return
    for name, layer in network.named_modules():
        rounded = isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) and ".lora_" not in name
        if rounded and not any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
            layer.to(dtype)
