"""What compilation must know of each architecture."""

from __future__ import annotations

# Compute capability -> PTX version. Left alone, Triton 3.9 emits PTX 9.4, which CUDA 13.0's ptxas and driver 580
# refuse; these versions know the architecture, and every driver for it reads them.
PTX_VERSIONS = {80: 80, 86: 80, 89: 80, 90: 80, 100: 87, 120: 87}
# Compute capability -> bytes of shared memory a thread block may have (CUDA C++ Programming Guide, Compute Capabilities).
SHARED_LIMITS = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
ARCHITECTURES = tuple(PTX_VERSIONS)
