"""Files written whole or not at all, hashes, and JSON that hashes the same everywhere. Standard library only."""

from __future__ import annotations

import codecs
import difflib
import errno
import hashlib
import json
import math
import os
import re
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


_DEEPEST = 50  # nested lists and objects; no file of ours, of diffusers or of PEFT has ten
_DOUBTFUL = re.compile(rb"[0-9]{20}|[eE]\+?[0-9]{3}|NaN|Infinity|\\u[dD][89a-fA-F]")  # in all that `_parse` refuses


def read_json(path: Path | str, what: str, infinite: bool = False) -> Any:
    """Parsed JSON of an untrusted file; a missing or broken one raises `InputError` that names `what`.

    `parse_json` says what counts as broken.
    """
    path = Path(path)
    with _open_file(path, what) as stream:
        data = stream.read()
    try:
        return parse_json(data, infinite)
    except ValueError as error:
        reason = f"is not valid JSON ({brief(error, 80)}); make it again"
        raise InputError(f"{what}: {path} {POINTER if is_pointer(data) else reason}") from error


def parse_json(data: bytes, infinite: bool = False) -> Any:
    """Returns the value of JSON in UTF-8, with or without a byte-order mark.

    Raises `ValueError` for other text, for more than 50 levels, and for what programs read differently or cannot write:
    whole numbers of more than 64 bits, numbers that are not finite (`infinite` allows them) and halves of characters.
    """
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    try:
        value = _parse(text, infinite) if _DOUBTFUL.search(data) else json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if data.count(b"[") + data.count(b"{") > _DEEPEST:
        _check_depth(value)
    return value


def _parse(text: str, infinite: bool) -> Any:
    def whole(digits: str) -> int:
        if len(digits.lstrip("-")) > 20:
            raise ValueError(f"a whole number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number) and not infinite:
            raise ValueError(f"a number that is not finite: {brief(digits, 20)}")
        return number

    value = json.loads(text, parse_int=whole, parse_float=real, parse_constant=real)
    json.dumps(value, ensure_ascii=False).encode()  # half of a character has no bytes
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        nodes = (node.values() if isinstance(node, dict) else node for node in level if isinstance(node, dict | list))
        level = [child for children in nodes for child in children if isinstance(child, dict | list)]
    if level:
        raise ValueError("nested too deep")


POINTER = "is a Git LFS pointer, not the file that it stands for; run git lfs pull where it came from"


def is_pointer(data: bytes) -> bool:
    """Whether the bytes are the start of a text that Git LFS leaves in place of a file."""
    return data.startswith(b"version https://git-lfs.github.com/spec/")


@contextmanager
def _open_file(path: Path, what: str) -> Iterator[IO[bytes]]:
    """Opens a file, but no folder, pipe or device, which may never end; else raises `InputError`."""
    try:
        if path.exists() and not path.is_file():
            kind = "directory" if path.is_dir() else "pipe or device"
            raise InputError(f"{what}: {path} is a {kind}, not a file; put the file itself there")
        with open(path, "rb") as stream:
            yield stream
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "does not exist" if missing else f"cannot be read ({error.strerror})"
        raise InputError(f"{what}: {path} {reason}") from error


def write_jsonl(path: Path | str, rows: Iterable[Any]) -> None:
    """Atomically writes one canonical JSON value a line."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(canonical_json(row) + "\n")


def read_jsonl(path: Path | str, what: str) -> Iterator[Any]:
    """Streams the values of a JSON-lines file; a broken line raises `InputError` with its number."""
    path = Path(path)
    with _open_file(path, what) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                value = parse_json(line)
            except ValueError as error:
                where = f"{path} line {number}"
                raise InputError(f"{what}: {where} is not valid JSON; delete the file and rerun") from error
            yield value


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ", nearest 'x'" for an unknown name, or "" when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", nearest {matches[0]!r}" if matches else ""
