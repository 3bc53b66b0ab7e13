"""Any set of photos as ROOT/<identity>/*.jpg."""

from __future__ import annotations

from pathlib import Path

from dive_fast.data.names import check_tree, identity_folders, image_files, require_folder
from dive_fast.types import Modality, Sample

_EXPECTED = "one folder per identity: ROOT/<identity>/*.jpg"


def read_folder(root: Path | str, camera: str, modality: Modality = "rgb") -> list[Sample]:
    """The images of every identity folder in `root`, all as seen by `camera`; files directly in `root` are not read.

    All-digit names get SYSU's four digits ("12" -> "0012"). Warns of identity folders without images and of files that are
    not read. Raises `InputError` when no folder has an image and when two folders mean one identity.
    """
    root = Path(root)
    require_folder(root, _EXPECTED)
    unread: list[Path] = []
    folders = identity_folders(root, unread)
    files = ((pid, file) for pid, folder in folders.items() for file in image_files(folder, unread))
    samples = [Sample(file, pid, camera, modality=modality) for pid, file in files]
    return check_tree(samples, root, folders, _EXPECTED, unread)
