"""MSMT17, both versions: train/ and test/ (V1) or mask_train_v2/ and mask_test_v2/ (V2, faces blurred), and four lists."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from dive_fast.data.lists import read_lists
from dive_fast.data.names import require_folder, require_split, sample_key
from dive_fast.types import InputError, Sample

Msmt17Split = Literal["train", "val", "trainval", "query", "gallery"]

_VERSIONS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
_EXPECTED = (
    "MSMT17's layout: train/ and test/ (V1) or mask_train_v2/ and mask_test_v2/ (V2), and list_train.txt, list_val.txt, "
    "list_query.txt, list_gallery.txt"
)


def read_msmt17(root: Path | str, split: Msmt17Split = "trainval", camera: str = "cam7") -> list[Sample]:
    """The images of one split, sorted by identity and file name, all with the camera name `camera`, as in DiVE.

    train and val show the same people; query and gallery show others, who count from 0000 again. Raises `InputError` when
    the folder holds neither version or both, and when lists and files disagree (see `read_lists`).
    """
    root = Path(root)
    require_split("MSMT17", split, get_args(Msmt17Split))
    require_folder(root, _EXPECTED)
    train, test = _version(root)
    parts = ["train", "val"] if split == "trainval" else [split]
    folder = root / (test if split in ("query", "gallery") else train)
    lists = [root / f"list_{part}.txt" for part in parts]
    images = chain.from_iterable(read_lists(lists, folder, _EXPECTED))
    return sorted((Sample(image.path, image.pid, camera) for image in images), key=sample_key)


def _version(root: Path) -> tuple[str, str]:
    found = [version for version in _VERSIONS if all((root / name).is_dir() for name in version)]
    if not found:
        raise InputError(f"{root} has no images of MSMT17; expected {_EXPECTED}")
    if len(found) > 1:
        raise InputError(f"{root} holds both versions of MSMT17, train/ and mask_train_v2/; keep them apart")
    return found[0]
