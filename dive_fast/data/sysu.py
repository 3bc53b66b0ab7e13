"""SYSU-MM01's tree: camN/PID/NUMBER.jpg and comma-separated identity lists in exp/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

from dive_fast.data.names import (
    canonical_pid,
    check_tree,
    identity_folders,
    image_files,
    list_text,
    require_folder,
    require_split,
    subfolders,
)
from dive_fast.types import InputError, Modality, Sample

SysuSplit = Literal["train", "val", "test", "trainval", "all"]

INFRARED_CAMERAS = ("cam3", "cam6")
CAMERA_NAME = re.compile(r"cam[0-9]+")

_EXPECTED = "SYSU-MM01's layout: cam1/0001/0001.jpg ... cam6/... and exp/train_id.txt, val_id.txt, test_id.txt"


def camera_modality(camera: str) -> Modality:
    """SYSU's convention: cameras 3 and 6 are infrared, every other one is RGB."""
    return "ir" if camera in INFRARED_CAMERAS else "rgb"


def read_sysu(root: Path | str, split: SysuSplit = "train") -> list[Sample]:
    """Every image of the split's identities, sorted by camera, identity and file number.

    "trainval" joins two lists; "all" takes every identity folder and needs no exp/. Warns of listed identities without
    images and of files that are not read. Raises `InputError` for a folder that is no such tree or has no image.
    """
    root = Path(root)
    require_split("SYSU", split, get_args(SysuSplit))
    require_folder(root, _EXPECTED)
    cameras = camera_folders(root)
    if not cameras:
        raise InputError(f"{root} has no camera folder; expected {_EXPECTED}")
    listed = None if split == "all" else _listed(root, split)
    unread: list[Path] = []
    samples = [
        s
        for camera in cameras
        for s in camera_samples(camera, listed, camera.name, camera_modality(camera.name), unread)
    ]
    return check_tree(samples, root, listed or (), _EXPECTED, unread)


def camera_folders(root: Path) -> list[Path]:
    """The folders cam1, cam2, ... in `root`."""
    return [folder for folder in subfolders(root) if CAMERA_NAME.fullmatch(folder.name)]


def camera_samples(
    folder: Path, listed: set[str] | None, camera: str, modality: Modality, unread: list[Path]
) -> list[Sample]:
    """The images in a camera's folder of identity folders, of the `listed` identities or of all (None)."""
    return [
        Sample(file, pid, camera, modality=modality)
        for pid, identity in identity_folders(folder, unread).items()
        if listed is None or pid in listed
        for file in image_files(identity, unread)
    ]


def read_ids(path: Path | str, expected: str = _EXPECTED) -> list[str]:
    """The identities of one exp/*_id.txt, in file order ("1,2" -> "0001", "0002"); names that are no number stay."""
    text = list_text(Path(path), expected, "comma-separated identities")
    tokens = (token.strip() for token in re.split(r"[,\n]", text))
    return [canonical_pid(token, str(path)) for token in tokens if token]


def _listed(root: Path, split: str) -> set[str]:
    parts = ("train", "val") if split == "trainval" else (split,)
    return {pid for part in parts for pid in read_ids(root / "exp" / f"{part}_id.txt")}
