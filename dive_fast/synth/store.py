"""Where a dataset's files lie, by relative POSIX names, and which process works on which shard."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from dive_fast.io import clear_disk_errors
from dive_fast.types import InputError

WORK = ".work"  # unfinished files and locks of shards; empty when no process works


Release = Callable[[], None]
"""Gives a claim back; the end of the process does so, too."""


class Store(Protocol):
    """A dataset's files. A file is there whole or not at all; what `write` returns from has reached the disk."""

    where: str

    def write(self, name: str, data: bytes, shard: int | None = None) -> None:
        """`shard` is the claimed one that the file belongs to."""

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError` for one that is not there."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when it is not there."""

    def folder(self, name: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file directly in a folder, nothing for one that is not there."""

    def walk(self) -> Iterator[str]:
        """The names of all files."""

    def remove(self, name: str) -> None: ...
    def claim(self, shard: int | None) -> Release | None:
        """Claims a shard, or with None what belongs to all; returns None while another process has it."""

    def tidy(self) -> None:
        """Removes what only running processes need, if none runs."""


class LocalStore:
    """A folder. Files are written to `WORK` and moved into the tree, so the leftovers of a killed run lie there; the next
    claim of their shard removes them.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def write(self, name: str, data: bytes, shard: int | None = None) -> None:
        target = self.root / name
        with clear_disk_errors(target):
            if not target.parent.resolve().is_relative_to(self.root.resolve()):
                raise InputError(f"{target} leads out of {self.root}, by a link or by '..'; choose another folder")
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.root / WORK).mkdir(exist_ok=True)
            temporary = self.root / WORK / f"{_label(shard)}-{secrets.token_hex(6)}.tmp"
            try:
                with temporary.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def folder(self, name: str) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.root / name) as entries:
                yield from ((f"{name}/{e.name}", e.stat().st_size) for e in entries if e.is_file())
        except FileNotFoundError:
            return

    def walk(self) -> Iterator[str]:
        for at, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if name != WORK)
            yield from sorted((Path(at) / name).relative_to(self.root).as_posix() for name in files)

    def remove(self, name: str) -> None:
        with clear_disk_errors(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    def claim(self, shard: int | None) -> Release | None:
        release = _lock(self.root / WORK / f"{_label(shard)}.lock")
        if release is not None:
            for leftover in (self.root / WORK).glob(f"{_label(shard)}-*.tmp"):
                leftover.unlink(missing_ok=True)
        return release

    def tidy(self) -> None:
        with suppress(OSError):  # not empty: a process works, or was killed, and the next run clears that away
            (self.root / WORK).rmdir()


# Not filelock: it leaves a file behind for every shard, and without flock its locks outlive a process on another machine.
def _lock(path: Path) -> Release | None:
    """Locks a file until release or the end of the process, however it ends; None while another process has it."""
    import fcntl  # Windows lacks it, and reads and plans without

    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if error.errno == errno.EWOULDBLOCK:
                    return None
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise InputError(
                        f"{path.parent.parent}: its file system has no locks, so two runs could make the same shard; "
                        "choose another --out and copy the dataset when it is finished"
                    ) from error
                raise
            # another process may have removed the file between our opening and locking it
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(path)):
                    return partial(_unlock, path, handle)
            os.close(handle)


def _unlock(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)
    os.close(handle)


def _label(shard: int | None) -> str:
    return "all" if shard is None else f"{shard:05d}"
