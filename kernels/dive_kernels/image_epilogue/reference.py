"""What `image_epilogue` computes, in readable torch. This file defines correctness, on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def image_epilogue_reference(images: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W], about -1..1 -> (uint8 [B, H, W, 3], int32 [B]: values that are not finite).

    In float32, each operation rounded on its own, halves to even as diffusers does. NaN becomes 0, infinities are clamped.
    """
    wide = images.float()
    broken = (~wide.isfinite()).sum((1, 2, 3), dtype=torch.int32)
    inside = (wide * 0.5 + 0.5).clamp(0, 1).nan_to_num(0)  # NaN as an integer is undefined
    pixels = (inside * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous(), broken
