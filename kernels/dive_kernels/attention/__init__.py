"""Self-attention."""

from dive_kernels.attention.api import attention, chosen, why_not_fused

__all__ = ["attention", "chosen", "why_not_fused"]
