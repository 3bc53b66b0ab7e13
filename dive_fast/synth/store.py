"""Where a dataset's files lie, by relative POSIX names, and which process works on which shard."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from dive_fast.data.files import read_plain
from dive_fast.io import clear_disk_errors, is_at, is_incidental, lock
from dive_fast.types import InputError

MOST = 1 << 30  # bytes of a file; the plan of a million identities has a third of that
WORK = ".work"  # unfinished files and locks of shards; empty when no process works


Release = Callable[[], None]
"""Gives a claim back; the end of the process does so, too."""


class Store(Protocol):
    """A dataset's files. A file is there whole or not at all; what `write` returns from has reached the disk."""

    where: str

    def write(self, name: str, data: bytes, shard: int | None = None) -> None:
        """`shard` is the claimed one that the file belongs to."""

    def read(self, name: str) -> bytes:
        """Raises `FileNotFoundError` for one that is not there, `InputError` for what is no readable file."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None when none is there."""

    def folder(self, name: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every file directly in a folder, nothing for one that is not there."""

    def walk(self) -> Iterator[str]:
        """The names of all files but unfinished ones and litter of operating systems."""

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
        where = f"{self.where}/{name}"
        try:
            return read_plain(self.root / name, where, MOST)
        except NotADirectoryError as error:
            if self.root.exists() and not self.root.is_dir():
                raise InputError(f"{self.where} is a file; choose another folder") from error
            raise FileNotFoundError(where) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            raise InputError(f"{where} cannot be read: {error.strerror}; correct that or remove it") from error

    def size(self, name: str) -> int | None:
        try:
            status = (self.root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise InputError(
                f"{self.where}/{name} cannot be read: {error.strerror}; correct that or remove it"
            ) from error
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def folder(self, name: str) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self.root / name) as entries:
                for path in (f"{name}/{entry.name}" for entry in entries):
                    if (size := self.size(path)) is not None:
                        yield path, size
        except (FileNotFoundError, NotADirectoryError):
            return

    def walk(self) -> Iterator[str]:
        for at, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if name != WORK and not is_incidental(name))
            found = (Path(at) / name for name in files if not is_incidental(name))
            yield from sorted(path.relative_to(self.root).as_posix() for path in found)

    def remove(self, name: str) -> None:
        with clear_disk_errors(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    def claim(self, shard: int | None) -> Release | None:
        return self._claim(_label(shard))

    def _claim(self, label: str) -> Release | None:
        release = _lock(self.root / WORK / f"{label}.lock")
        if release is not None:
            with clear_disk_errors(self.root / WORK):
                for leftover in (self.root / WORK).glob(f"{label}-*.tmp"):
                    leftover.unlink(missing_ok=True)
        return release

    def tidy(self) -> None:
        with suppress(OSError):  # not empty: a process works
            for label in {entry.name.split("-")[0].removesuffix(".lock") for entry in (self.root / WORK).iterdir()}:
                release = self._claim(label)
                if release is not None:
                    release()
            (self.root / WORK).rmdir()


# Not filelock: it leaves a file behind for every shard, and without flock its locks outlive a process on another machine.
def _lock(path: Path) -> Release | None:
    """Locks a file until release or the end of the process, however it ends; None while another process has it."""
    with clear_disk_errors(path):
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            locked = lock(handle)
            if locked and is_at(handle, path):  # another process may have removed it before it was locked
                return partial(_unlock, path, handle)
            os.close(handle)
            if locked is False:
                return None
            if locked is None:
                raise InputError(
                    f"{path.parent.parent}: its file system has no locks, so two runs could make the same shard; "
                    "choose another --out and copy the dataset when it is finished"
                )


def _unlock(path: Path, handle: int) -> None:
    try:
        with clear_disk_errors(path):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _label(shard: int | None) -> str:
    return "all" if shard is None else f"{shard:05d}"
