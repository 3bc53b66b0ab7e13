"""The attention of training steps on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_MOST_POSITIONS = 512  # of a UNet's largest map; past it the matrix of weights takes more memory than time is saved


def use_cpu_attention(unet: Any, device: torch.device | str) -> None:
    """Computes a small UNet's attention by diffusers' `AttnProcessor` on a CPU, in place; elsewhere changes nothing.

    torch's fused attention spends half of a pocket training step in its backward pass on a CPU (docs/log.md). The results
    differ by rounding alone.
    """
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    if torch.device(device).type == "cpu" and height * width <= _MOST_POSITIONS:
        unet.set_attn_processor(AttnProcessor())
