"""What identities and files may be called, and the order they are read in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from dive_fast.types import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

# One folder name: no separators, no comma (exp/*.txt is comma separated), no leading or trailing dot or space.
_PID = re.compile(r"\w(?:[\w .+@-]*\w)?")


def canonical_pid(name: str, where: str) -> str:
    """The project's one spelling of an identity: all-digit names as SYSU's four digits ("12" -> "0012"), others as is.

    Raises `InputError` naming `where` for a name that cannot be a folder and an entry of a comma-separated list.
    """
    if not _PID.fullmatch(name):
        raise InputError(f"{where}: {name!r} cannot be an identity name; use letters, digits, '_', '-', '.' or spaces")
    return f"{int(name):04d}" if is_number(name) else name


def is_number(name: str) -> bool:
    """Whether an identity's name is one that SYSU's own readers parse."""
    return name.isascii() and name.isdigit()


def natural_key(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sort key that reads numbers as numbers: 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(part), "") if odd % 2 else (-1, part) for odd, part in enumerate(parts)), name


def subfolders(root: Path) -> list[Path]:
    """The folders in `root`, hidden ones left out, in natural order."""
    folders = (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(folders, key=lambda folder: natural_key(folder.name))


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, hidden ones left out, in natural order."""
    files = (f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
    return sorted((f for f in files if f.is_file()), key=lambda file: natural_key(file.name))


def identity_folders(root: Path) -> dict[str, Path]:
    """The folders in `root` by the identity that each stands for; two for one ("12" and "0012") raise `InputError`."""
    folders: dict[str, Path] = {}
    for folder in subfolders(root):
        pid = canonical_pid(folder.name, str(root))
        if pid in folders:
            raise InputError(f"{root}: folders {folders[pid].name} and {folder.name} both mean {pid}; rename one")
        folders[pid] = folder
    return folders


def warn_of_twins(root: Path, files: Iterable[Path]) -> None:
    """Warns of files that differ by suffix or case only, as 0001.jpg and 0001.png: mostly one photo saved twice."""
    seen: dict[tuple[Path, str], Path] = {}
    twins = []
    for file in files:
        first = seen.setdefault((file.parent, file.stem.lower()), file)
        if first is not file:
            twins.append(f"{first.relative_to(root).as_posix()} and {file.name}")
    if twins:
        warnings.warn(
            f"{root}: {len(twins):,} images have the name of another but for suffix or case ({some(twins)}); "
            "both are read: remove one if they are the same photo",
            stacklevel=3,
        )


def require_folder(root: Path, expected: str) -> None:
    """Raises `InputError` that says what was expected when `root` is not a folder."""
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {state}; expected {expected}")


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first few names for a message: "a, b, c and 7 more"."""
    listed = list(names)
    rest = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {rest:,} more" if rest > 0 else "")
