"""LLCM: lists of training images, and a tree of test images by camera."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Literal, get_args

from dive_fast.data.lists import read_lists
from dive_fast.data.names import (
    canonical_pid,
    identity_folders,
    image_files,
    natural_key,
    require_folder,
    some,
    subfolders,
    warn_of_twins,
)
from dive_fast.data.sysu import CAMERA_NAME, read_ids
from dive_fast.types import InputError, Modality, Sample

LlcmSplit = Literal["train", "test"]

_MODALITIES: dict[str, Modality] = {"vis": "rgb", "nir": "ir"}
_CAMERA_IN_NAME = re.compile(r"_c(\d+)_")
_EXPECTED = "LLCM's layout: idx/train_vis.txt, train_nir.txt and test_id.txt, and test_vis/cam1/0001/*.jpg, test_nir/"


def read_llcm(root: Path | str, split: LlcmSplit = "train") -> list[Sample]:
    """The images of one split, sorted by modality (RGB first), camera, identity and file name.

    Each of LLCM's cameras films in both modalities; here it is two cameras, as llcm-vis1 and llcm-nir1, whose last number is
    the camera's, which LLCM's evaluation compares. A test identity without images is reported by a warning. Raises
    `InputError` when lists and files do not agree (see `read_lists`), or a training file's name tells no camera.
    """
    root = Path(root)
    if split not in get_args(LlcmSplit):
        raise InputError(f"LLCM split must be one of {get_args(LlcmSplit)}, got {split!r}")
    require_folder(root, _EXPECTED)
    return _train(root) if split == "train" else _test(root)


def camera_name(kind: str, number: int) -> str:
    """What a camera is called in one of its modalities, `kind` "vis" or "nir"."""
    return f"llcm-{kind}{number}"


def _train(root: Path) -> list[Sample]:
    lists = [root / "idx" / f"train_{kind}.txt" for kind in _MODALITIES]
    samples = []
    for path, kind, images in zip(lists, _MODALITIES, read_lists(lists, root, _EXPECTED), strict=True):
        found = [_listed(path, kind, image.path, image.folder) for image in images]
        samples += sorted(found, key=lambda s: [natural_key(part) for part in (s.camera, s.pid, s.path.name)])
    return samples


def _listed(path: Path, kind: str, file: Path, folder: str) -> Sample:
    match = _CAMERA_IN_NAME.search(file.name)
    if not match:
        raise InputError(f"{path}: {file} names no camera; expected names like 0001_c01_s185535_f7010_{kind}.jpg")
    pid = canonical_pid(folder, str(path))
    return Sample(file, pid, camera_name(kind, int(match[1])), modality=_MODALITIES[kind])


def _test(root: Path) -> list[Sample]:
    listed = set(read_ids(root / "idx" / "test_id.txt", _EXPECTED))
    samples = [sample for kind in _MODALITIES for sample in _test_tree(root / f"test_{kind}", kind, listed)]
    if not samples:
        raise InputError(f"{root} has no image of the identities in idx/test_id.txt; expected {_EXPECTED}")
    missing = sorted(listed - {sample.pid for sample in samples}, key=natural_key)
    if missing:
        warnings.warn(f"{root}: {len(missing):,} test identities have no image: {some(missing)}", stacklevel=3)
    warn_of_twins(root, (sample.path for sample in samples))
    return samples


def _test_tree(tree: Path, kind: str, listed: set[str]) -> list[Sample]:
    require_folder(tree, _EXPECTED)
    samples = []
    for camera in subfolders(tree):
        if CAMERA_NAME.fullmatch(camera.name):
            name = camera_name(kind, int(camera.name.removeprefix("cam")))
            for pid, folder in identity_folders(camera).items():
                if pid in listed:
                    samples += [Sample(file, pid, name, modality=_MODALITIES[kind]) for file in image_files(folder)]
    return samples
