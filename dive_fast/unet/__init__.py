"""The UNet's graph variants, exact graph optimizations and custom kernels."""
