"""What kernels and their compilation must know of a compute capability, written as 90 for 9.0."""

from __future__ import annotations

# PTX version by architecture. Left alone, Triton 3.9 emits PTX 9.4, which CUDA 13.0's ptxas and driver 580 refuse; these
# versions know the architecture, and every driver for it reads them.
PTX_VERSIONS = {80: 80, 86: 80, 89: 80, 90: 80, 100: 87, 120: 87}
ARCHITECTURES = tuple(PTX_VERSIONS)


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that a thread block may have (CUDA C++ Programming Guide, Compute Capabilities)."""
    return (227 if 90 <= capability < 120 else 163 if capability in (80, 87) else 99) << 10
