"""Which source a kernel is compiled from, as one hash: a compiled kernel whose hash differs is stale. Imports no kernel."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent


def is_cuda(kernel: str) -> bool:
    """Returns whether a kernel's name is CUDA C++, "folder/file.cu:function", and not Triton, "module:function"."""
    return kernel.partition(":")[0].endswith(".cu")


def source_file(kernel: str) -> Path:
    """Returns the file of this package that defines a kernel."""
    name = kernel.partition(":")[0]
    return PACKAGE / name if is_cuda(kernel) else PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")


@cache
def source_hash(kernel: str) -> str:
    """Returns the SHA-256 of the kernel's file and the headers beside it, by name and content.

    A Triton kernel's file imports nothing of this package, and a CUDA C++ one includes only headers of its folder (a test
    checks both). A checkout's line ends do not count.
    """
    file = source_file(kernel)
    digest = hashlib.sha256()
    for part in (file, *sorted(file.parent.glob("*.h"))):
        content = part.read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{part.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()
