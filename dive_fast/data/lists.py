"""Lists of images as RegDB, LLCM and MSMT17 bring them: one "PATH LABEL" a line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dive_fast.data.names import canonical_pid, list_text
from dive_fast.io import brief
from dive_fast.types import InputError


@dataclass(frozen=True)
class ListedImage:
    """One line of a list: the file, and the identity, which is the name of the file's folder."""

    path: Path
    pid: str


def read_lists(lists: Sequence[Path], root: Path, expected: str) -> list[list[ListedImage]]:
    """The images of each list, in file order; paths are relative to `root`.

    A label is a trainer's class number: over all lists, labels and folders must match one to one. Raises `InputError`
    naming list and line for a list that is missing or empty, a malformed line, a path that leaves `root`, a file that is
    missing or listed twice, and labels that disagree with the folders.
    """
    files: dict[str, str] = {}
    labels: dict[str, tuple[str, str]] = {}
    found = [[_image(line, where, root, files, labels) for line, where in _lines(path, expected)] for path in lists]
    for path, images in zip(lists, found, strict=True):
        if not images:
            raise InputError(f"{path} lists no image; copy it from the data set again")
    return found


def _lines(path: Path, expected: str) -> Iterator[tuple[str, str]]:
    """Every non-blank line, and its place for errors."""
    text = list_text(path, expected, "lines of a path and a label")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield line.strip(), f"{path} line {number}"


def _image(line: str, where: str, root: Path, files: dict[str, str], labels: dict[str, tuple[str, str]]) -> ListedImage:
    name, label = (*line.rsplit(maxsplit=1), "", "")[:2]
    if not label.isdecimal() or len(label) > 9:
        raise InputError(
            f"{where}: {brief(repr(line), 80)} is not a path and a whole number; copy the list from the data set again"
        )
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise InputError(
            f"{where}: {brief(repr(name), 80)} leads out of {root}; list files by their path inside the data set"
        )
    if len(inside.parts) < 2:
        raise InputError(
            f"{where}: {brief(repr(name), 80)} lies in no identity's folder; copy the list from the data set again"
        )
    first = files.setdefault(str(inside), where)
    if first != where:
        raise InputError(f"{where}: {inside} is listed already at {first}; remove one of the two lines")
    label, folder = f"label {int(label)}", f"folder {inside.parent.name}"
    for key, value in ((label, folder), (folder, label)):
        other, at = labels.setdefault(key, (value, where))
        if other != value:
            raise InputError(
                f"{where}: {key} stands for {value}, but for {other} at {at}; "
                "copy the lists from the data set again, all of one trial and version"
            )
    if not os.path.isfile(root / inside):  # unlike `Path.is_file`, it takes any text
        remedy = "unpack the data set again or use the list that belongs to it"
        raise InputError(f"{where}: {brief(root / inside, 160)} does not exist; {remedy}")
    return ListedImage(root / inside, canonical_pid(inside.parent.name, where))
