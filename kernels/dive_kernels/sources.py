"""Which source a kernel is compiled from, as one hash: a compiled kernel whose hash differs is stale. Imports no kernel."""

from __future__ import annotations

import ast
import hashlib
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def is_cuda(kernel: str) -> bool:
    """Whether a kernel's name is a CUDA C++ one, "folder/file.cu:function", and not a Triton one, "module:function"."""
    return kernel.partition(":")[0].endswith(".cu")


def source_file(kernel: str) -> Path:
    """The file that defines a kernel; of both kinds of names only what lies in this package is a kernel of ours."""
    name = kernel.partition(":")[0]
    return PACKAGE / name if is_cuda(kernel) else _module_file(name)


@cache
def source_hash(kernel: str) -> str:
    """SHA-256 over the kernel's file and every file of this package that it takes in, by name and content.

    Line ends count as "\\n": a checkout may have others.
    """
    found: dict[str, bytes] = {}
    waiting = [source_file(kernel)]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(PACKAGE).as_posix()
        if name not in found:
            found[name] = file.read_bytes().replace(b"\r\n", b"\n")
            waiting += _taken_in(file, found[name].decode())
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name} {len(found[name])}\n".encode() + found[name])
    return digest.hexdigest()


def _taken_in(file: Path, text: str) -> list[Path]:
    """Files of this package that one file imports or includes."""
    if file.suffix != ".py":
        return [file.parent / name for name in INCLUDE.findall(text)]
    names = set()
    for node in ast.walk(ast.parse(text, str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    files = (_module_file(name) for name in sorted(names) if name.startswith(f"{PACKAGE.name}."))
    return [found for found in files if found.is_file()]


def _module_file(module: str) -> Path:
    return PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
