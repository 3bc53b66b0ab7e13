"""Files written whole or not at all, hashes, and JSON that hashes the same everywhere. Standard library only."""

from __future__ import annotations

import codecs
import difflib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from dive_fast.types import DiveError, InputError

TEMPORARY = ".dive-tmp"  # how the names of unfinished files and folders end
# What network drives, desktops and archives put among files and folders, in small letters.
LITTER = {
    *(
        ".ds_store",
        ".directory",
        ".localized",
        "desktop.ini",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "icon\r",
        "thumbs.db",
    ),
    *("@database", "@eadir", "@recently-snapshot", "@recycle", "@sharebin", "@sharesnap", "@tmp", "@transcode"),
    *("#recycle", "#snapshot", "$recycle.bin", "recycled", "recycler", "system volume information"),
    *("~snapshot", "found.000", "lost.dir", "@synoresource"),
    *("__macosx", "__pycache__", "lost+found", "network trash folder", "temporary items"),
}


def brief(message: object, most: int = 300) -> str:
    """A library's message or exception on one line, cut to `most` characters."""
    return " ".join(str(message).split())[:most]


def user_cache(name: str) -> Path:
    """The folder `name` in the user's cache: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dive-fast" / name


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is one that network drives, desktops or archives leave: no one's content."""
    return name.casefold() in LITTER or name.startswith("._")


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is unfinished work of a running or a killed process."""
    return name.startswith(".") and name.endswith(TEMPORARY)


def is_incidental(name: str) -> bool:
    """Whether a file or folder of this name is litter or unfinished work: no content of the folder that holds it."""
    return is_litter(name) or is_temporary(name)


def is_empty(path: Path) -> bool:
    """Whether a place holds nothing: not there, a file of no bytes, or a folder of litter and unfinished files only."""
    if path.is_dir():
        return all(is_incidental(entry.name) for entry in path.iterdir())
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


_ELSEWHERE = "choose another --out"
_REFUSALS = {
    errno.ENOSPC: f"the disk is full; free space or {_ELSEWHERE}, then rerun: finished work is kept",
    errno.EDQUOT: f"the disk quota is used up; free space or {_ELSEWHERE}, then rerun: finished work is kept",
    errno.EROFS: f"the file system is read-only; {_ELSEWHERE}",
    errno.EACCES: "permission denied; choose an --out that you may write to",
    errno.EPERM: "permission denied; choose an --out that you may write to",
    errno.ENOTDIR: f"a part of this path is a file, not a folder; {_ELSEWHERE}",
    errno.EISDIR: f"it is a folder; {_ELSEWHERE}",
    errno.ENOTEMPTY: f"the folder is not empty; {_ELSEWHERE}",
    errno.EEXIST: f"a part of this path is something else than a folder; {_ELSEWHERE}",
    errno.ENAMETOOLONG: "the name is too long for its file system; choose a shorter --out",
    errno.ELOOP: f"its links lead in a circle; {_ELSEWHERE}",
    errno.EFBIG: f"the file is too large for its file system; {_ELSEWHERE}",
    errno.EIO: f"the disk reports an error; check the disk or {_ELSEWHERE}, then rerun: finished work is kept",
    errno.ESTALE: "the network file system lost the folder; mount it again, then rerun: finished work is kept",
    errno.EINVAL: f"its file system does not take this name or size; {_ELSEWHERE}",
    errno.EBUSY: f"the file or folder is in use; {_ELSEWHERE}",
    errno.ENXIO: f"there is no such device; {_ELSEWHERE}",
    errno.ENODEV: f"there is no such device; {_ELSEWHERE}",
}


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into a `DiveError` with a remedy."""
    try:
        yield
    except OSError as error:
        remedy = _REFUSALS.get(error.errno or 0)
        if error.errno is None:  # array writers and encoders raise errors without a number
            remedy = f"{brief(error, 80)}; free space or {_ELSEWHERE}, then rerun: finished work is kept"
        elif error.errno == errno.ENOENT and Path(os.fsdecode(error.filename or "")).parent == path.parent:
            remedy = "its folder was removed meanwhile; rerun"
        if remedy is None:
            raise
        raise DiveError(f"cannot write {path}: {remedy}") from error


def lock(handle: int) -> bool | None:
    """Locks an open file until it is closed, at the latest by the end of the process.

    Returns False while another process has it, and None where there are no locks (some network file systems, Windows).
    """
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return None
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            return None
        raise
    return True


@contextmanager
def locked(path: Path, folder: Path) -> Iterator[int]:
    """Makes the file `path` if it is missing, and yields its handle, locked while the block runs.

    Raises `InputError` while another run holds the lock, and so writes to `folder`. A pipe in its place is not waited for.
    """
    with clear_disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o644)
    try:
        if lock(handle) is False:
            raise InputError(f"another run is writing to {folder}; wait for it, or {_ELSEWHERE}")
        yield handle
    finally:
        os.close(handle)


@lru_cache(maxsize=4096)  # a scan for every written file would take quadratic time
def clear_leftovers(folder: Path) -> None:
    """Removes unfinished files and folders of killed processes from `folder`, once a process: their locks are free."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if is_temporary(entry.name)]
    for path in found:
        try:
            handle = os.open(path / "lock" if path.is_dir() else path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # gone meanwhile, or of another user
            continue
        try:
            if lock(handle):
                discard(path)
        finally:
            os.close(handle)


def discard(temporary: Path) -> None:
    """Removes an unfinished file, or the folder of `new_folder` after putting back what nothing replaced."""
    if not temporary.is_dir():
        temporary.unlink(missing_ok=True)
        return
    _put_back(temporary)
    shutil.rmtree(temporary)


def _put_back(temporary: Path) -> None:
    """Moves the old folder back to its place unless the new one got there."""
    for old in (temporary / "old").glob("*"):
        if not (temporary.parent / old.name).exists():
            os.rename(old, temporary.parent / old.name)


def _unfinished(name: str) -> str:
    """The start of an unfinished file's name; a long name is hashed, as file systems take at most 255 bytes."""
    return f".{name if len(os.fsencode(name)) <= 200 else sha256_bytes(os.fsencode(name))}"


@contextmanager
def new_folder(path: Path, wanted: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a folder beside `path` that takes its place when the block succeeds and `wanted` says so of it.

    Raises `InputError` while another run writes `path`. What stops in between leaves the folder at `path` as it was; what
    killed runs left is removed.
    """
    with clear_disk_errors(path):
        path = path.resolve() if path.is_symlink() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent.absolute())
        temporary = path.parent / f"{_unfinished(path.name)}{TEMPORARY}"
        with _locked_folder(temporary, path):
            try:
                _put_back(temporary)
                for left in (temporary / "new", temporary / "old"):
                    shutil.rmtree(left, ignore_errors=True)
                fresh = temporary / "new"
                fresh.mkdir()
                yield fresh
                if wanted(fresh):
                    _replace(fresh, path)
            finally:
                discard(temporary)


@contextmanager
def _locked_folder(temporary: Path, path: Path) -> Iterator[None]:
    """Makes and locks the folder `temporary`."""
    while True:
        temporary.mkdir(exist_ok=True)
        with locked(temporary / "lock", path) as handle:
            if is_at(handle, temporary / "lock"):
                yield
                return


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file still lies at `path`: another process may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _replace(fresh: Path, path: Path) -> None:
    """Moves a new folder to `path`; what was there moves to `old`, from which `_put_back` takes it."""
    if not is_empty(path):
        (fresh.parent / "old").mkdir()
        os.rename(path, fresh.parent / "old" / path.name)
    take_place(fresh, path)


def take_place(fresh: Path, path: Path) -> None:
    """Moves a folder to the empty place `path`; litter there moves into it. A place that holds more raises `InputError`."""
    with clear_disk_errors(path):
        if not is_empty(path):
            raise InputError(f"{path} holds other files; {_ELSEWHERE}")
        for entry in path.iterdir() if path.exists() else ():
            os.rename(entry, fresh / entry.name)
        os.replace(fresh, path)


@contextmanager
def atomic_path(path: Path | str, wanted: Callable[[Path], bool] = lambda fresh: True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on failure it is removed.

    It does not replace `path` when `wanted` says no of it. A device, a pipe or a folder at `path` raises `InputError`.
    """
    path = Path(path)
    if is_temporary(path.name):  # of an output whose own content this is
        yield path
        return
    with clear_disk_errors(path):
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is {'a folder' if path.is_dir() else 'no plain file'}; name another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path.parent.absolute())
        handle, temporary = _locked_file(path)
        try:
            yield temporary
            if wanted(temporary):
                os.chmod(temporary, 0o644)
                with open(temporary, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)


def _locked_file(path: Path) -> tuple[int, Path]:
    """Makes and locks an unfinished file beside `path`."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_unfinished(path.name)}.", suffix=TEMPORARY)
        if lock(handle) is not False and is_at(handle, Path(name)):
            return handle, Path(name)
        os.close(handle)


def atomic_write(path: Path | str, data: bytes | memoryview | str) -> None:
    """Writes `data` to `path` whole or not at all (text as UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def atomic_encode(path: Path | str, encode: Callable[[IO[bytes]], object]) -> None:
    """Writes what `encode` writes to a stream, whole or not at all; in memory first.

    Encoders report a full disk in ways of their own, or not at all.
    """
    stream = io.BytesIO()
    encode(stream)
    atomic_write(path, stream.getbuffer())


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in chunks; what is no file, as a pipe without end, or not there raises `InputError`."""
    digest = hashlib.sha256()
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} is a folder, pipe or device, not a file; put the file itself there")
    try:
        with open(path, "rb") as stream:
            while chunk := stream.read(1 << 18):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); put the file back, then rerun") from error
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal hashes on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def readable_json(value: Any) -> str:
    """JSON for readers, with sorted keys."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path | str, value: Any) -> None:
    """Atomically writes readable JSON with sorted keys."""
    atomic_write(path, readable_json(value))


POINTER = "is a Git LFS pointer, not the file that it stands for; run git lfs pull where it came from"


def is_pointer(data: bytes) -> bool:
    """Whether the bytes are the start of a text that Git LFS leaves in place of a file."""
    return data.startswith(b"version https://git-lfs.github.com/spec/")


def decode_text(data: bytes, errors: str = "strict") -> str:
    """The text of a file that any editor may have saved: UTF-8, with or without byte-order mark, or UTF-16 with it."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig", errors)


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> None:
    """Atomically writes one canonical JSON value a line."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(canonical_json(row) + "\n")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ", nearest 'x'" for an unknown name, or "" when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", nearest {matches[0]!r}" if matches else ""
