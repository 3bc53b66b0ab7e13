"""Attention of each row to the keys and values of its prompt, taken out of a bank by index."""

from dive_kernels.cross_attention.api import chosen, cross_attention, why_not_fused

__all__ = ["chosen", "cross_attention", "why_not_fused"]
