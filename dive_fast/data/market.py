"""Market-1501: flat folders whose file names carry identity and camera."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Literal

from dive_fast.data.names import (
    abbreviate,
    canonical_pid,
    describe_unread,
    image_files,
    require_folder,
    require_split,
    warn_unread,
)
from dive_fast.types import InputError, Sample

MarketSplit = Literal["train", "query", "gallery", "gt_bbox"]

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test", "gt_bbox": "gt_bbox"}
_NAME = re.compile(r"(-?\d+)_c(\d)s(\d)_(\d+)_(\d+)")
_JUNK, _BACKGROUND = -1, 0
_EXPECTED = "Market-1501's layout: bounding_box_train/0002_c1s1_000451_03.jpg, query/, bounding_box_test/"


def read_market(root: Path | str, split: MarketSplit = "train", camera: str = "cam7") -> list[Sample]:
    """The images of one split, sorted by name, all with the camera name `camera`, as in DiVE.

    Junk boxes (-1) are never returned, background boxes (0) only in the gallery, as distractors. Raises `InputError` for a
    missing or empty folder and for an image with another kind of name.
    """
    require_split("Market", split, tuple(FOLDERS))
    folder = Path(root) / FOLDERS[split]
    require_folder(folder, _EXPECTED)
    if split == "gt_bbox":
        warnings.warn(
            f"{folder} contains Market's TEST identities: after training on it, Market-1501 is no clean test set",
            stacklevel=2,
        )
    unread: list[Path] = []
    files = image_files(folder, unread)
    names = {file: _NAME.fullmatch(file.stem) for file in files}
    misnamed = [file.name for file in files if names[file] is None]
    if misnamed:
        raise InputError(
            f"{folder}: {len(misnamed):,} images are not named like 0002_c1s1_000451_03.jpg "
            f"({abbreviate(misnamed)}); rename or remove them, or sort all into one folder per identity for folder:PATH"
        )
    left_out = {_JUNK} if split == "gallery" else {_JUNK, _BACKGROUND}
    samples = [
        Sample(file, canonical_pid(name.group(1), str(file)), camera)
        for file, name in names.items()
        if name and int(name.group(1)) not in left_out
    ]
    if not samples:
        found = f" ({describe_unread(unread)})" if unread else ""
        raise InputError(f"{folder} has no image of a person{found}; expected names like 0002_c1s1_000451_03.jpg")
    warn_unread(folder, unread)
    return samples
