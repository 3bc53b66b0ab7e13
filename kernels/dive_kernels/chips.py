"""What kernels and their compilation must know of a compute capability, written as 90 for 9.0."""

from __future__ import annotations

# PTX version by architecture. Left alone, Triton 3.9 emits PTX 9.4, which CUDA 13.0's ptxas and driver 580 refuse; these
# versions know the architecture, and every driver for it reads them.
PTX_VERSIONS = {80: 80, 86: 80, 89: 80, 90: 80, 100: 87, 120: 87}
ARCHITECTURES = tuple(PTX_VERSIONS)


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that a thread block may have (CUDA C++ Programming Guide, Compute Capabilities)."""
    return (227 if 90 <= capability < 120 else 163 if capability in (80, 87) else 99) << 10


def blocks_of(capability: int, warps: int, registers: int, shared_bytes: int) -> int:
    """Thread blocks of a kernel that a multiprocessor holds at a time (same source): registers go to warps in units of 8 a
    thread, every block takes 1 KB of shared memory more than it asks for.
    """
    threads = 32 * warps
    most_threads = 2048 if capability in (80, 87) or 90 <= capability < 120 else 1536
    by_registers = 65536 // (max(-(-registers // 8), 1) * 8 * threads)
    return min(by_registers, (shared_limit(capability) + 1024) // (shared_bytes + 1024), most_threads // threads)
