"""Chooses an implementation of `image_epilogue` and wraps it as a torch operator."""

from __future__ import annotations

import torch
from torch import Tensor

from dive_kernels.image_epilogue.plan import block_pixels, plan
from dive_kernels.image_epilogue.reference import image_epilogue_reference
from dive_kernels.reasons import against_fused, why_not_here
from dive_kernels.run import run, why_not_loaded

IMPLS = ("auto", "reference", "fused")
MOST_BLOCKS = 65535  # of a grid's second dimension, in CUDA


def image_epilogue(images: Tensor, *, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """Converts images [B, 3, H, W] of about -1..1 to (uint8 [B, H, W, 3], int32 [B]: values that are not finite).

    (x * 0.5 + 0.5) is clamped to 0..1, multiplied by 255 and rounded half to even, in float32 for every type. `auto` takes
    the kernel if it can run and else the reference, with a warning where the kernel cannot be compiled or loaded: both give
    the same bytes. `fused` runs the kernel or raises
    `ValueError` with every reason against it. There are no gradients.
    """
    pixels, broken = torch.ops.dive.image_epilogue(images, impl)
    return pixels, broken


def why_not_fused(images: Tensor) -> list[str]:
    """Returns every reason why the kernel cannot take these images; empty if it can."""
    reasons = why_not_here({"images": images}, language="cuda")
    if not (images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
        reasons.append(f"needs contiguous or channels_last images, strides are {tuple(images.stride())}")
    if images.shape[2] * images.shape[3] > MOST_BLOCKS * block_pixels():
        most = MOST_BLOCKS * block_pixels()
        reasons.append(f"needs at most {most} pixels an image, got {images.shape[2]} x {images.shape[3]}")
    return reasons


@torch.library.custom_op("dive::image_epilogue", mutates_args=())
def _image_epilogue(images: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    against = against_fused("image_epilogue", impl, IMPLS, _misfits(images), lambda: why_not_fused(images))
    if impl == "reference" or against:
        return image_epilogue_reference(images)
    launch, outputs = plan(images)
    if impl == "auto" and why_not_loaded(launch) is not None:
        return image_epilogue_reference(images)
    run(launch)
    return outputs


@_image_epilogue.register_fake
def _fake(images: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    rows, channels, height, width = images.shape
    pixels = images.new_empty((rows, height, width, channels), dtype=torch.uint8)
    return pixels, images.new_empty(rows, dtype=torch.int32)


def _misfits(images: Tensor) -> list[str]:
    """Returns what no implementation can take."""
    reasons = []
    if images.ndim != 4 or images.shape[1] != 3:
        reasons.append(f"images must be [B, 3, H, W], got shape {tuple(images.shape)}")
    if not images.is_floating_point():
        reasons.append(f"images must be floating point, got {images.dtype}")
    return reasons
