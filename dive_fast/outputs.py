"""What a command may write over: one rule for every file and folder that a user names.

An output whose content is equal stays as it is. Another one is kept, and the run refused, unless `overwrite` is given. What
is of another kind, or holds other files, is refused always. Litter of operating systems counts as nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dive_fast.io import (
    TEMPORARY,
    atomic_path,
    clear_disk_errors,
    discard,
    is_empty,
    is_incidental,
    locked,
    new_folder,
    sha256_file,
    write_json,
)
from dive_fast.json_files import parse_json, read_json
from dive_fast.types import InputError

_KEPT = "{} holds another result and is kept; give --overwrite, or choose another --out"

Kind = Callable[[Path], bool]
"""Whether what lies at a path is of one kind of output."""


def holds(name: str) -> Kind:
    """The kind of folders that hold a file called `name`."""
    return lambda path: (path / name).is_file()


def json_with(*keys: str) -> Kind:
    """The kind of JSON files of an object with these keys."""

    def is_one(path: Path) -> bool:
        try:
            value = parse_json(path.read_bytes(), infinite=True) if path.is_file() else None
        except (OSError, ValueError):
            return False
        return isinstance(value, dict) and set(keys) <= set(value)

    return is_one


def begins_with(start: bytes) -> Kind:
    """The kind of files that begin with `start`."""

    def is_one(path: Path) -> bool:
        if not path.is_file():
            return False
        with open(path, "rb") as stream:
            return stream.read(len(start)) == start

    return is_one


PNG = begins_with(b"\x89PNG\r\n\x1a\n")
PAGE = begins_with(
    b'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
)


def check_place(path: Path, is_ours: Kind) -> None:
    """Raises `InputError` when something of another kind lies at `path`; call it before hours of work."""
    if is_empty(path):
        return
    if not (path.is_dir() or path.is_file()):
        raise InputError(f"{path} is no plain file; choose another --out")
    if not is_ours(path):
        raise InputError(f"{path} is not what this command writes and is kept; choose another --out or move it away")


def check_new(path: Path, is_ours: Kind, overwrite: bool) -> None:
    """As `check_place`, and refuses an older result: for results of measured times, which never come out equal."""
    check_place(path, is_ours)
    if not (overwrite or is_empty(path)):
        raise InputError(_KEPT.format(path))


def check_same(path: Path, is_ours: Kind, record: str, config: dict[str, Any], overwrite: bool) -> None:
    """As `check_place`, and refuses a result whose file `record` notes another "config": before hours of work."""
    check_place(path, is_ours)
    if overwrite or is_empty(path):
        return
    noted = read_json(path / record, "record of a training") if (path / record).is_file() else None
    if not isinstance(noted, dict) or noted.get("config") != parse_json(json.dumps(config).encode()):
        raise InputError(_KEPT.format(path))


def output_folder(path: Path | str, is_ours: Kind, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Yields a folder that takes the place of `path`, by the rule above, when the block succeeds."""
    path = Path(path)
    if path.is_file():
        raise InputError(f"{path} is a file; choose another --out")
    check_place(path, is_ours)
    return new_folder(path, partial(_settle, path, is_ours, overwrite))


def output_file(path: Path | str, is_ours: Kind, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Yields a file that takes the place of `path`, by the rule above, when the block succeeds."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    check_place(path, is_ours)
    return atomic_path(path, partial(_settle, path, is_ours, overwrite))


def write_output(path: Path | str, data: str, is_ours: Kind, overwrite: bool) -> None:
    """Writes the text file `path` by the rule above."""
    with output_file(path, is_ours, overwrite) as fresh:
        fresh.write_text(data, encoding="utf-8")


def _settle(path: Path, is_ours: Kind, overwrite: bool, fresh: Path) -> bool:
    """Whether `fresh` is to take the place of `path`; raises `InputError` when that is refused."""
    check_place(path, is_ours)
    if is_empty(path):
        return True
    old, new = _files(path), _files(fresh)
    if all(name in old and _equal(old[name], file) for name, file in new.items()):
        return False
    if not overwrite:
        raise InputError(_KEPT.format(path))
    others = sorted(set(old) - set(new))
    if others:
        raise InputError(f"{path} also holds {others[0]}, which is of no such result; move it away")
    return True


def _files(path: Path) -> dict[str, Path]:
    """The files of a folder by name, without litter; a file is its own only one."""
    if path.is_file():
        return {"": path}
    files = ((file, file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())
    return {name.as_posix(): file for file, name in files if not any(map(is_incidental, name.parts))}


def _equal(one: Path, other: Path) -> bool:
    return one.is_file() and one.stat().st_size == other.stat().st_size and sha256_file(one) == sha256_file(other)


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
    elif not is_empty(folder):
        raise InputError(f"{folder} holds other files and no {what}; choose another --out")
    with clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, content)
    with locked(path, folder):
        with clear_disk_errors(folder):
            for temporary in list(folder.rglob(f".*{TEMPORARY}")):
                discard(temporary)
        yield
