"""Base of the layouts' naming of images in a new tree that joins several sets.

An image of a set of the same layout keeps its name; any other gets the next number of its person and camera.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from dive_fast.data.names import is_number
from dive_fast.types import InputError, Modality

Problems = tuple[list[str], list[str]]
"""Why a tree cannot be written, and what some of its trainers would misread."""


class Naming:
    """Names the training images of one new tree; each pass over the images uses a fresh one.

    `keep` and `add` raise `InputError` for names that the layout's readers cannot read, and for a name given twice.
    """

    # Whether the layout's trainers stack images as they are into one array, which takes three channels in every image.
    three_channels = True
    # What the layout's trainers find; files with another suffix are converted to JPEG.
    suffixes: tuple[str, ...] = (".jpg", ".png", ".bmp")

    def __init__(self) -> None:
        self._last: Counter[tuple[str, str]] = Counter()
        self._taken: set[str] = set()  # of kept names only, so that memory does not grow with generated images

    def keep(self, own: str, pid: str, camera: str) -> str:
        """The name of an image that is called `own` in a set of this layout; it changes only with the person's name, and
        to .jpg for a suffix that trainers do not find.
        """
        name = self._kept(own, pid, camera)
        if PurePosixPath(name).suffix.lower() not in (*self.suffixes, ".jpeg"):
            name = str(PurePosixPath(name).with_suffix(".jpg"))
        if name in self._taken:
            raise InputError(f"two images would be {name} in the new tree; remove one, or give one's set a prefix=")
        self._taken.add(name)
        return name

    def add(self, pid: str, camera: str, modality: Modality, suffix: str) -> str:
        """The name of an image from elsewhere; `suffix` stays if the layout allows it."""
        suffix = suffix.lower() if suffix.lower() in self.suffixes else ".jpg"
        while (name := self._next(pid, camera, modality, suffix)) in self._taken:
            continue
        return name

    def problems(self, people: Sequence[str], cameras: Sequence[tuple[str, Modality]]) -> Problems:
        """Errors and cautions about these people's names and about the cameras of images from elsewhere."""
        raise NotImplementedError

    def _kept(self, own: str, pid: str, camera: str) -> str:
        raise NotImplementedError

    def _next(self, pid: str, camera: str, modality: Modality, suffix: str) -> str:
        raise NotImplementedError

    def _number(self, pid: str, camera: str) -> int:
        self._last[pid, camera] += 1
        return self._last[pid, camera]

    def _seen(self, pid: str, camera: str, number: str) -> None:
        """Continues counting from a kept image's number."""
        if is_number(number):
            self._last[pid, camera] = max(self._last[pid, camera], int(number))


def camera_number(camera: str) -> int | None:
    """The number at the end of a camera's name, as 3 of "cam3" and of "llcm-nir3"."""
    match = re.search(r"([0-9]{1,4})$", camera)
    return int(match[1]) if match else None


def same_number(cameras: Sequence[tuple[str, Modality]], apart: bool) -> list[str]:
    """Cameras that a file name cannot tell apart, one caution a number; with `apart`, the modality tells them."""
    names: dict[tuple[int | None, Modality | None], list[str]] = {}
    for camera, modality in cameras:
        names.setdefault((camera_number(camera), modality if apart else None), []).append(camera)
    return [
        f"cameras {' and '.join(same)} are one, number {number}, in the new files' names; --camera renames"
        for (number, _), same in names.items()
        if len(same) > 1 and number is not None
    ]
