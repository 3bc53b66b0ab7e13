"""GroupNorm and SiLU in one op, of one source or two, channels last."""

from dive_kernels.groupnorm_silu.api import groupnorm_silu, why_not_fused

__all__ = ["groupnorm_silu", "why_not_fused"]
