"""LLCM: lists of training images, and a tree of test images by camera."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, get_args

from dive_fast.data.lists import ListedImage, read_lists
from dive_fast.data.names import check_tree, require_folder, require_split, sample_key
from dive_fast.data.sysu import camera_folders, camera_samples, read_ids
from dive_fast.types import InputError, Modality, Sample

LlcmSplit = Literal["train", "test"]

_MODALITIES: dict[str, Modality] = {"vis": "rgb", "nir": "ir"}
_CAMERA_IN_NAME = re.compile(r"_c(\d+)_")
_EXPECTED = "LLCM's layout: idx/train_vis.txt, train_nir.txt and test_id.txt, and test_vis/cam1/0001/*.jpg, test_nir/"


def read_llcm(root: Path | str, split: LlcmSplit = "train") -> list[Sample]:
    """The images of one split, sorted by modality (RGB first), camera, identity and file name.

    Each of LLCM's cameras films in both modalities; here it is two, as llcm-vis1 and llcm-nir1: LLCM's evaluation compares
    the last number. Warns of test identities without images. Raises `InputError` when lists and files disagree (see
    `read_lists`) and when a training file's name has no camera.
    """
    root = Path(root)
    require_split("LLCM", split, get_args(LlcmSplit))
    require_folder(root, _EXPECTED)
    return _train(root) if split == "train" else _test(root)


def camera_name(kind: str, number: int) -> str:
    """What a camera is called in one of its modalities, `kind` "vis" or "nir"."""
    return f"llcm-{kind}{number}"


def _train(root: Path) -> list[Sample]:
    lists = [root / "idx" / f"train_{kind}.txt" for kind in _MODALITIES]
    samples: list[Sample] = []
    for path, kind, images in zip(lists, _MODALITIES, read_lists(lists, root, _EXPECTED), strict=True):
        samples += sorted((_listed(path, kind, image) for image in images), key=sample_key)
    return samples


def _listed(path: Path, kind: str, image: ListedImage) -> Sample:
    match = _CAMERA_IN_NAME.search(image.path.name)
    if not match:
        raise InputError(f"{path}: {image.path} names no camera; expected names like 0001_c01_s185535_f7010_{kind}.jpg")
    return Sample(image.path, image.pid, camera_name(kind, int(match[1])), modality=_MODALITIES[kind])


def _test(root: Path) -> list[Sample]:
    listed = set(read_ids(root / "idx" / "test_id.txt", _EXPECTED))
    samples: list[Sample] = []
    unread: list[Path] = []
    for kind, modality in _MODALITIES.items():
        require_folder(root / f"test_{kind}", _EXPECTED)
        for folder in camera_folders(root / f"test_{kind}"):
            camera = camera_name(kind, int(folder.name.removeprefix("cam")))
            samples += camera_samples(folder, listed, camera, modality, unread)
    return check_tree(samples, root, listed, _EXPECTED, unread)
