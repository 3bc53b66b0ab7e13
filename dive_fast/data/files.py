"""Plain files of an untrusted disk, read whole: never a pipe, a device or a file without end."""

from __future__ import annotations

import stat
from pathlib import Path

from dive_fast.types import InputError


def require_plain(path: Path, name: str, most: int) -> None:
    """Raises `InputError` for a pipe, a device, a folder, and a file of more than `most` bytes; `OSError` as `stat`.

    Errors call it `name`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
        raise InputError(f"{name} cannot be read: it is a {kind}, not a file; remove it")
    if status.st_size > most:
        raise InputError(f"{name} is too large: {status.st_size:,} bytes, at most {most:,} are read; remove it")


def read_plain(path: Path, name: str, most: int) -> bytes:
    """The bytes of a plain file of at most `most` bytes; raises as `require_plain`."""
    require_plain(path, name, most)
    return path.read_bytes()
