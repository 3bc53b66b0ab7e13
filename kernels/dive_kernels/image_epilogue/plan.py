"""How the CUDA C++ kernel is called: one read of each value, one write of each byte."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.cuda_kernels import image_epilogue
from dive_kernels.launch import Launch

PIXELS = 4  # of a thread: 12 bytes, which are whole words
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def plan(images: Tensor) -> tuple[Launch, tuple[Tensor, Tensor]]:
    """Returns the launch on any chip, and the outputs (uint8 [B, H, W, 3], int32 [B]) that it writes.

    `images` [B, 3, H, W] must be contiguous or channels_last.
    """
    rows, channels, height, width = images.shape
    pixels = height * width
    out = torch.empty((rows, height, width, channels), dtype=torch.uint8, device=images.device)
    broken = torch.zeros(rows, dtype=torch.int32, device=images.device)  # each warp adds to it
    kernel = image_epilogue(NAMES[images.dtype], images.is_contiguous())
    launch = Launch(
        kernel=kernel.kernel,
        grid=(rows, -(-pixels // block_pixels())),
        arguments=dict(zip(dict(kernel.arguments), (images, out, broken, pixels), strict=True)),
        constants={},
        warps=kernel.warps,
        stages=kernel.stages,
    )
    return launch, (out, broken)


def block_pixels() -> int:
    """Returns the pixels of one thread block."""
    return PIXELS * 32 * image_epilogue("fp32", True).warps
