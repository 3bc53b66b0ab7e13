"""GEGLU: a projection to twice the width, one half gated by the GELU of the other."""

from dive_kernels.geglu.api import geglu, why_not_fused

__all__ = ["geglu", "why_not_fused"]
