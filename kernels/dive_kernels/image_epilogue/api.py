"""The one place that chooses an implementation of `image_epilogue`, and the torch operator around it."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.image_epilogue.plan import block_pixels, plan
from dive_kernels.image_epilogue.reference import image_epilogue_reference
from dive_kernels.reasons import choose, refuse, why_not_here
from dive_kernels.run import run

IMPLS = ("auto", "reference", "fused")
MOST_BLOCKS = 65535  # of a grid's second dimension, in CUDA


def image_epilogue(images: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W], about -1..1 -> (uint8 [B, H, W, 3], int32 [B]: how many values of each are not finite).

    (x * 0.5 + 0.5) clamped to 0..1, times 255, rounded half to even, in float32 for every type. `auto` takes the kernel
    where it runs and the reference elsewhere: both give the same bytes. `fused` runs the kernel or raises `ValueError` with
    every reason why it cannot. There are no gradients.
    """
    pixels, broken = torch.ops.dive.image_epilogue(images, impl)
    return pixels, broken


def why_not_fused(images: Tensor) -> list[str]:
    """Every reason why the kernel cannot take these images; empty if it can."""
    reasons = why_not_here({"images": images}, language="cuda")
    if not (images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
        reasons.append(f"needs contiguous or channels_last images, strides are {tuple(images.stride())}")
    if images.shape[2] * images.shape[3] > MOST_BLOCKS * block_pixels():
        most = MOST_BLOCKS * block_pixels()
        reasons.append(f"needs at most {most} pixels an image, got {images.shape[2]} x {images.shape[3]}")
    return reasons


@torch.library.custom_op("dive::image_epilogue", mutates_args=())
def _image_epilogue(images: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    choose("image_epilogue", impl, IMPLS)
    refuse("image_epilogue", _misfits(images))
    reasons = [] if impl == "reference" else why_not_fused(images)
    if impl == "fused":
        refuse("image_epilogue: impl='fused' cannot run", reasons)
    if impl == "reference" or reasons:
        return image_epilogue_reference(images)
    launch, outputs = plan(images)
    run(launch)
    return outputs


@_image_epilogue.register_fake
def _fake(images: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    rows, channels, height, width = images.shape
    return images.new_empty((rows, height, width, channels), dtype=torch.uint8), images.new_empty(
        (rows,), dtype=torch.int32
    )


def _misfits(images: Tensor) -> list[str]:
    """What no implementation can work with."""
    reasons = []
    if images.ndim != 4 or images.shape[1] != 3:
        reasons.append(f"images must be [B, 3, H, W], got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        reasons.append(f"images must be floating point, got {images.dtype}")
    return reasons
