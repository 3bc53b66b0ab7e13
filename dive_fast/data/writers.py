"""Writing the layouts that trainers read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from dive_fast.data.names import IMAGE_SUFFIXES, abbreviate, canonical_pid, is_number, natural_key
from dive_fast.data.sysu import CAMERA_NAME, read_ids
from dive_fast.io import atomic_write
from dive_fast.types import InputError, shown


def sysu_name(camera: str, pid: str, number: int, suffix: str = ".jpg") -> str:
    """Where a SYSU tree keeps an image, relative to its root: camN/PID/%04d.jpg.

    Raises `InputError` for a camera, identity, number or suffix that a SYSU reader would not read back.
    """
    if not CAMERA_NAME.fullmatch(camera):
        raise InputError(f"camera {shown(camera)} cannot be written to a SYSU tree; name cameras cam1, cam2, ...")
    spelling = canonical_pid(pid, "SYSU tree")
    if spelling != pid:
        raise InputError(f"identity {shown(pid)} cannot be written to a SYSU tree; spell it {shown(spelling)}")
    if number < 1 or suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"no image of a SYSU tree can be number {number} with suffix {suffix!r}")
    return f"{camera}/{pid}/{number:04d}{suffix}"


def new_path(root: Path, name: str) -> Path:
    """`root/name` for a new file; a name that exists or lies outside `root` raises `InputError`."""
    path = root / name
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} exists already and is not overwritten; remove it or choose another folder")
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path} leads out of {root}, by a link or by '..'; choose another folder")
    return path


def write_ids(root: Path, **splits: Iterable[str]) -> None:
    """Writes exp/{train,val,test}_id.txt of the given `splits`, sorted, for an SYSU-MM01 tree.

    A list of other identities raises `InputError`. Warns about names that are no number, which AGW-family readers reject.
    """
    for split, given in splits.items():
        path = root / "exp" / f"{split}_id.txt"
        pids = _sorted_pids(given, str(path))
        if not path.exists():
            atomic_write(path, id_list(pids, str(path)))
        elif read_ids(path) != pids:
            raise InputError(f"{path} lists other identities and is not overwritten; choose another folder")


def id_list(given: Iterable[str], where: str) -> str:
    """The text of exp/*_id.txt, identities sorted; warns about names that are no number."""
    pids = _sorted_pids(given, where)
    words = [pid for pid in pids if not is_number(pid)]
    if words:
        warnings.warn(
            f"{where}: {abbreviate(words)} are no numbers; AGW-family readers will not read this list", stacklevel=3
        )
    return ",".join(str(int(pid)) if is_number(pid) else pid for pid in pids) + "\n"


def _sorted_pids(given: Iterable[str], where: str) -> list[str]:
    return sorted({canonical_pid(pid, where) for pid in given}, key=natural_key)
