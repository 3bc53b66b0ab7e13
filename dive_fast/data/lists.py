"""Lists of images as RegDB, LLCM and MSMT17 bring them: one "PATH LABEL" a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dive_fast.types import InputError


@dataclass(frozen=True)
class ListedImage:
    """One line of a list: the file, and the name of the folder that it lies in, which names the person."""

    path: Path
    folder: str


@dataclass
class _Seen:
    """What the lines read so far said, and where: lists that are read together must agree."""

    files: dict[str, str]
    folder_of: dict[int, tuple[str, str]]
    label_of: dict[str, tuple[int, str]]


def read_lists(lists: Sequence[Path], root: Path, expected: str) -> list[list[ListedImage]]:
    """The images of each list, in file order; paths are relative to `root`.

    A label is a trainer's class number: over all the lists it must stand for one folder, and a folder for one label.
    Raises `InputError` naming list and line for a list that is missing or empty, a line of another form, a path that
    leaves `root`, a file that is listed twice or is not there, and labels that disagree with the folders.
    """
    seen = _Seen({}, {}, {})
    found = [[_image(line, where, root, seen) for line, where in _lines(path, expected)] for path in lists]
    for path, images in zip(lists, found, strict=True):
        if not images:
            raise InputError(f"{path} lists no image; copy it from the data set again")
    return found


def _lines(path: Path, expected: str) -> Iterator[tuple[str, str]]:
    """Every line that is not blank, and what to call it in an error."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text; expected lines of a path and a label") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield line.strip(), f"{path} line {number}"


def _image(line: str, where: str, root: Path, seen: _Seen) -> ListedImage:
    name, label = (*line.rsplit(maxsplit=1), "", "")[:2]
    if not label.isdecimal():
        raise InputError(f"{where}: {line!r} is not a path and a whole number; copy the list from the data set again")
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(f"{where}: {name!r} leads out of {root}; list files by their path inside the data set")
    if len(inside.parts) < 2:
        raise InputError(f"{where}: {name!r} lies in no identity's folder; copy the list from the data set again")
    first = seen.files.setdefault(str(inside), where)
    if first != where:
        raise InputError(f"{where}: {inside} is listed already at {first}; remove one of the two lines")
    _check_label(inside.parent.name, int(label), where, seen)
    path = root / inside
    if not path.is_file():
        raise InputError(
            f"{where}: {path} does not exist; unpack the data set again or use the list that belongs to it"
        )
    return ListedImage(path, inside.parent.name)


def _check_label(folder: str, label: int, where: str, seen: _Seen) -> None:
    other_folder, at = seen.folder_of.setdefault(label, (folder, where))
    if other_folder != folder:
        raise InputError(
            f"{where}: label {label} stands for folder {folder}, but for folder {other_folder} at {at}; "
            "copy the lists from the data set again, all of one trial and version"
        )
    other_label, at = seen.label_of.setdefault(folder, (label, where))
    if other_label != label:
        raise InputError(
            f"{where}: folder {folder} has label {label}, but label {other_label} at {at}; "
            "copy the lists from the data set again, all of one trial and version"
        )
