"""Products and convolutions of e4m3 numbers, by torch and cuDNN; and the numbers' scales."""

from dive_kernels.fp8.api import IMPLS, convolution, product, why_no_convolution
from dive_kernels.fp8.numbers import E4M3, largest_scale, norm_scale, quantised

__all__ = ["E4M3", "IMPLS", "convolution", "largest_scale", "norm_scale", "product", "quantised", "why_no_convolution"]
