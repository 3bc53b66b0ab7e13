"""Files written whole or not at all, hashes, and JSON that hashes the same everywhere. Standard library only."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from dive_fast.types import DiveError, InputError


def brief(message: object, most: int = 300) -> str:
    """A library's message or exception on one line, cut to `most` characters."""
    return " ".join(str(message).split())[:most]


def user_cache(name: str) -> Path:
    """The folder `name` in the user's cache: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dive-fast" / name


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into a `DiveError` with a remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full; free space or choose another --out, then rerun: finished work is kept",
        errno.EDQUOT: "the disk quota is used up; free space or choose another --out, then rerun: finished work is kept",
        errno.EROFS: "the file system is read-only; choose another --out",
        errno.EACCES: "permission denied; choose an --out that you may write to",
        errno.EPERM: "permission denied; choose an --out that you may write to",
        errno.ENOTDIR: "a part of this path is a file, not a folder; choose another --out",
    }
    try:
        yield
    except OSError as error:
        if error.errno in remedies:
            raise DiveError(f"cannot write {path}: {remedies[error.errno]}") from error
        raise


def lock_folder(stream: IO[Any], folder: Path) -> None:
    """Locks an open file of `folder` until the process ends, or raises `InputError` when another run holds the lock."""
    import fcntl  # Windows lacks it, and reads and plans without

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise InputError(f"another run is writing to {folder}; wait for it, or choose another --out") from error
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):  # some network file systems have no locks
            raise


@contextmanager
def claim_folder(
    folder: Path, marker: str, content: dict[str, Any], what: str, sources: Iterable[Path]
) -> Iterator[None]:
    """Makes `folder` the place of one result, which the file `marker` identifies, and locks it while the block runs.

    Removes what a killed run left half written. Raises `InputError` for a folder inside one of `sources`, with a marker of
    other content or with other files, and for one that another run writes to.
    """
    path = folder / marker
    for source in sources:
        if folder.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{folder} lies in {source}, which is not written to; choose another --out")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose another --out")
    if path.exists():
        if read_json(path, what) != content:
            text = f"{folder} holds another {what}: its inputs or options differ"
            raise InputError(f"{text}; delete it or choose another --out")
    elif folder.exists() and any(not entry.name.startswith(f".{marker}.") for entry in folder.iterdir()):
        raise InputError(f"{folder} holds other files and no {what}; choose another --out")
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, content)
        stream = path.open("r+b")
    with stream:
        lock_folder(stream, folder)
        with clear_disk_errors(folder):
            for temporary in folder.rglob(".*.????????.tmp"):  # as `atomic_path` names them
                temporary.unlink()
        yield


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on failure it is removed."""
    path = Path(path)
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            os.chmod(temporary, 0o644)
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Writes `data` to `path` whole or not at all (text as UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 18):
            digest.update(chunk)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values have equal hashes on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def write_json(path: Path | str, value: Any) -> None:
    """Atomically writes readable JSON with sorted keys."""
    atomic_write(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path | str, what: str) -> Any:
    """Parsed JSON of an untrusted file; a missing or broken one raises `InputError` that names `what`."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(path, what, error) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of a million digits, nested too deep
        raise InputError(f"{what}: {path} is not valid JSON ({error}); make it again") from error


def _unreadable(path: Path, what: str, error: OSError) -> InputError:
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return InputError(f"{what}: {path} " + ("does not exist" if missing else f"cannot be read ({error.strerror})"))


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> None:
    """Atomically writes one canonical JSON value a line."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(canonical_json(row) + "\n")


def read_jsonl(path: Path | str, what: str) -> Iterator[Any]:
    """Streams the values of a JSON-lines file; a broken line raises `InputError` with its number."""
    path = Path(path)
    try:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    where = f"{path} line {number}"
                    raise InputError(f"{what}: {where} is not valid JSON; delete the file and rerun") from error
                yield value
    except OSError as error:
        raise _unreadable(path, what, error) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ", nearest 'x'" for an unknown name, or "" when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", nearest {matches[0]!r}" if matches else ""
