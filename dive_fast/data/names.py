"""What identities and files may be called, and the order they are read in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from dive_fast.types import InputError, Sample

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

# One folder name: no separators, no comma (exp/*.txt is comma separated), no leading or trailing dot or space.
_PID = re.compile(r"\w(?:[\w .+@-]*\w)?")


def canonical_pid(name: str, where: str) -> str:
    """Spells an identity: all-digit names get SYSU's four digits ("12" -> "0012"), others stay.

    A name that cannot be a folder or an entry of a comma-separated list raises `InputError` naming `where`.
    """
    if not _PID.fullmatch(name):
        raise InputError(f"{where}: {name!r} cannot be an identity name; use letters, digits, '_', '-', '.' or spaces")
    return f"{int(name):04d}" if is_number(name) else name


def is_number(name: str) -> bool:
    """Whether SYSU's own readers can parse an identity's name."""
    return name.isascii() and name.isdigit()


def natural_key(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sort key that reads numbers as numbers: 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(part), "") if odd % 2 else (-1, part) for odd, part in enumerate(parts)), name


def sample_key(sample: Sample) -> list[object]:
    """Sort key: by camera, identity and file name, in natural order."""
    return [natural_key(part) for part in (sample.camera, sample.pid, sample.path.name)]


def subfolders(root: Path) -> list[Path]:
    """The folders in `root`, hidden ones left out, in natural order."""
    folders = (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(folders, key=lambda folder: natural_key(folder.name))


def image_files(folder: Path) -> list[Path]:
    """The image files directly in `folder`, hidden ones left out, in natural order."""
    files = (f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
    return sorted((f for f in files if f.is_file()), key=lambda file: natural_key(file.name))


def identity_folders(root: Path) -> dict[str, Path]:
    """The identity folders in `root` by identity; two for one ("12" and "0012") raise `InputError`."""
    folders: dict[str, Path] = {}
    for folder in subfolders(root):
        pid = canonical_pid(folder.name, str(root))
        if pid in folders:
            raise InputError(f"{root}: folders {folders[pid].name} and {folder.name} both mean {pid}; rename one")
        folders[pid] = folder
    return folders


def check_tree(samples: list[Sample], root: Path, wanted: Iterable[str], expected: str) -> list[Sample]:
    """Returns the samples read from a tree of identity folders; a tree without any raises `InputError`.

    Warns of `wanted` identities without images, and of files that differ by suffix or case only, as 0001.jpg and 0001.png.
    """
    if not samples:
        raise InputError(f"{root} has no image of the identities to read; expected {expected}")
    missing = sorted(set(wanted) - {sample.pid for sample in samples}, key=natural_key)
    if missing:
        warnings.warn(f"{root}: {len(missing):,} identities have no image: {abbreviate(missing)}", stacklevel=3)
    seen: dict[tuple[Path, str], Path] = {}
    duplicates = []
    for file in (sample.path for sample in samples):
        first = seen.setdefault((file.parent, file.stem.lower()), file)
        if first is not file:
            duplicates.append(f"{first.relative_to(root).as_posix()} and {file.name}")
    if duplicates:
        warnings.warn(
            f"{root}: {len(duplicates):,} images differ from another by suffix or case only ({abbreviate(duplicates)}); "
            "both are read: remove one if they are the same photo",
            stacklevel=3,
        )
    return samples


def list_text(path: Path, expected: str, form: str) -> str:
    """The text of a data set's list, which should have the given `form`; a missing or binary one raises `InputError`."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text; expected {form}") from error


def require_split(layout: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise InputError(f"{layout} split must be one of {', '.join(known)}, got {split!r}")


def require_folder(root: Path, expected: str) -> None:
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {state}; expected {expected}")


def abbreviate(names: Iterable[str], shown: int = 3) -> str:
    """The first few names for a message: "a, b, c and 7 more"."""
    listed = list(names)
    rest = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {rest:,} more" if rest > 0 else "")
