"""What identities and files may be called, and the order they are read in."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import count
from pathlib import Path

from dive_fast.data.files import read_plain
from dive_fast.io import brief, decode_text, is_litter
from dive_fast.types import InputError, Sample, shown

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
    ".pgm",
    ".ppm",
    ".pnm",
)  # of `images.FORMATS`

# One folder name: no separators, no comma (exp/*.txt is comma separated), no leading or trailing dot or space.
_ASCII_PID = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_ .+@'()-]*[A-Za-z0-9_)])?")
_SIGNS = " .+@-_'()\u2019"
_JOINERS = "\u200c\u200d"  # within words of Persian and of Indic scripts
_PID_BYTES = 180  # a file's name has 255: some layouts put a camera and numbers behind the identity

_NOTES = (".txt", ".json", ".xml", ".csv", ".md", ".html", ".log", ".yaml", ".yml")
_LIST_BYTES = 1 << 28
_GUESSED = 100  # identities that a prefix is guessed from


def canonical_pid(name: str, where: str) -> str:
    """Spells an identity: all-digit names get SYSU's four digits ("12" -> "0012"), others Unicode's composed form (NFC).

    A name that cannot be a folder or an entry of a comma-separated list raises `InputError` naming `where`.
    """
    spelled = name if name.isascii() else unicodedata.normalize("NFC", name)
    if not _is_pid(spelled):
        raise InputError(
            f"{where}: {brief(repr(name), 80)} cannot be an identity name; use letters, digits, '_', '-', '.' or spaces, "
            f"at most {_PID_BYTES} bytes"
        )
    return f"{int(spelled):04d}" if is_number(spelled) else spelled


def _is_pid(name: str) -> bool:
    if name.isascii():
        return len(name) <= _PID_BYTES and _ASCII_PID.fullmatch(name) is not None
    return (
        all(_is_letter(sign) or sign in _SIGNS or sign in _JOINERS for sign in name)
        and (name[0].isalnum() or name[0] == "_")
        and (_is_letter(name[-1]) or name[-1] in "_)")
        and len(name.encode()) <= _PID_BYTES
    )


def _is_letter(sign: str) -> bool:
    """Whether a character is a letter, a digit, or a mark that belongs to the letter before it."""
    return sign.isalnum() or unicodedata.category(sign)[0] == "M"


def prefix_hint(pids: Iterable[str], known: Collection[str]) -> str:
    """A hint for identities that are `known` under longer names: the prefix that makes the most of them known; else ""."""
    few = sorted(set(pids))[:_GUESSED]
    found = Counter(name.removesuffix(pid) for pid in few for name in known if name.endswith(pid) and name != pid)
    return f"; is their set's prefix missing, as prefix={found.most_common(1)[0][0]}?" if found else ""


def free_prefix(pids: Iterable[str], taken: Collection[str]) -> str:
    """The first number from 1 on that, put before each of `pids`, makes a name that nobody in `taken` has."""
    names = list(pids)
    return next(str(n) for n in count(1) if not any(f"{n}{name}" in taken for name in names))


def is_number(name: str) -> bool:
    """Whether SYSU's own readers can parse an identity's name."""
    return name.isascii() and name.isdigit()


def natural_key(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """Sort key that reads numbers as numbers: 2.jpg before 10.jpg."""
    parts = re.split(r"([0-9]+)", name)
    # longer is larger, once leading zeros are gone; int() refuses thousands of digits
    digits = [part.lstrip("0") for part in parts[1::2]]
    parts[1::2] = digits
    return tuple((len(part), part) if odd % 2 else (-1, part) for odd, part in enumerate(parts)), name


def sample_key(sample: Sample) -> list[object]:
    """Sort key: by camera, identity and file name, in natural order."""
    return [natural_key(part) for part in (sample.camera, sample.pid, sample.path.name)]


def subfolders(root: Path) -> list[Path]:
    """The folders in `root` in natural order, without hidden ones and those of network drives, desktops and archives."""
    return [entry for entry in _entries(root) if os.path.isdir(entry) and not is_litter(entry.name)]


def image_files(folder: Path, unread: list[Path]) -> list[Path]:
    """The image files directly in `folder`, in natural order; whatever else may be a photo is added to `unread`.

    Left out of both are text, hidden files and folders, and those of network drives, desktops and archives.
    """
    found = []
    for entry in _entries(folder):
        if _is_image(entry):
            found.append(entry)
        elif not entry.name.casefold().endswith(_NOTES) and not is_litter(entry.name):
            unread.append(entry)
    return found


def describe_unread(unread: Iterable[Path]) -> str:
    """What was not read and why: "3 files are not read: .heic 2, dangling links 1 (first 0001/a.heic)"; "" for nothing."""
    listed = list(unread)
    if not listed:
        return ""
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(map(_kind, listed)).most_common(8))
    first = brief(f"{listed[0].parent.name}/{listed[0].name}", 80)
    return f"{len(listed):,} files are not read: {kinds} (first {first})"


def warn_unread(root: Path, unread: Iterable[Path]) -> None:
    """Warns of what `image_files` passed over."""
    if text := describe_unread(unread):
        warnings.warn(f"{root}: {text}", stacklevel=3)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, hidden entries left out, in natural order."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}; fix its permissions or remove it") from error
    return sorted(entries, key=lambda entry: natural_key(entry.name))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(path)


def _kind(path: Path) -> str:
    if not os.path.exists(path):
        return "dangling links"
    if os.path.isdir(path):
        return "folders"
    if not os.path.isfile(path):
        return "pipes and devices"
    if _is_image(path):
        return "images in no folder"
    return brief(path.suffix.lower(), 20) or "without suffix"


def identity_folders(root: Path, unread: list[Path]) -> dict[str, Path]:
    """The identity folders in `root` by identity; two for one ("12" and "0012") raise `InputError`.

    Images and dangling links beside them are added to `unread`.
    """
    unread += [entry for entry in _entries(root) if _is_image(entry) or not os.path.exists(entry)]
    folders: dict[str, Path] = {}
    for folder in subfolders(root):
        pid = canonical_pid(folder.name, str(root))
        if pid in folders:
            raise InputError(f"{root}: folders {folders[pid].name} and {folder.name} both mean {pid}; rename one")
        folders[pid] = folder
    return folders


def check_tree(
    samples: list[Sample], root: Path, wanted: Iterable[str], expected: str, unread: Sequence[Path]
) -> list[Sample]:
    """Returns the samples read from a tree of identity folders; a tree without any raises `InputError`.

    Warns of `unread` files, of `wanted` identities without images, and of files that differ by suffix or case only, as
    0001.jpg and 0001.png.
    """
    if not samples:
        found = f" ({describe_unread(unread)})" if unread else ""
        raise InputError(f"{root} has no image of the identities to read{found}; expected {expected}")
    warn_unread(root, unread)
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
    """The text of a data set's list, which should have the given `form`; a missing or binary one raises `InputError`.

    It is UTF-8 or, with its byte-order mark, UTF-16.
    """
    try:
        return decode_text(read_plain(path, str(path), _LIST_BYTES))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected {expected}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; expected {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text; expected {form}") from error


def require_split(layout: str, split: str, known: Sequence[str]) -> None:
    if split not in known:
        raise InputError(f"{layout} split must be one of {', '.join(known)}, got {shown(split)}")


def require_folder(root: Path, expected: str) -> None:
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise InputError(f"{root} {state}; expected {expected}")


def abbreviate(names: Iterable[str], shown: int = 3) -> str:
    """The first few names for a message: "a, b, c and 7 more"."""
    listed = list(names)
    rest = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {rest:,} more" if rest > 0 else "")
