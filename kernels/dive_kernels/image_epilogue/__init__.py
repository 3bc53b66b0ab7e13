"""Decoded images to bytes: scale, clamp, round, channels last, and a count of what is not finite, in one pass."""

from dive_kernels.image_epilogue.api import image_epilogue, why_not_fused

__all__ = ["image_epilogue", "why_not_fused"]
