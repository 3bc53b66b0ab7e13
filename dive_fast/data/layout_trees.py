"""Names in trees that need no lists of images: SYSU-MM01's and Market-1501's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from dive_fast.data.layout_names import Naming, Problems, camera_number, same_number
from dive_fast.data.names import abbreviate, is_number, natural_key
from dive_fast.data.sysu import CAMERA_NAME, camera_modality
from dive_fast.data.writers import sysu_name
from dive_fast.types import InputError, Modality

_AGW_CAMERAS = ("cam1", "cam2", "cam3", "cam4", "cam5", "cam6")
_AGW_NUMBERS = 9_999  # their file names have four digits, and persons are read from fixed places of a path
_MARKET_PEOPLE, _MARKET_CAMERAS = 1501, 6  # what the Market1501 classes of torchreid and fast-reid assert
_MARKET_NAME = re.compile(r"-?\d+(_c(\d)s\d_(\d+)_\d+)")


class SysuNaming(Naming):
    """camN/PID/%04d.jpg."""

    def problems(self, people: Sequence[str], cameras: Sequence[tuple[str, Modality]]) -> Problems:
        wrong = [
            f"camera {camera!r} cannot be {modality} in a SYSU tree, where cam3 and cam6 are infrared and any other camN is "
            f"RGB; rename it, as --camera {camera}={'cam6' if modality == 'ir' else 'cam1'}"
            for camera, modality in cameras
            if not CAMERA_NAME.fullmatch(camera) or camera_modality(camera) != modality
        ]
        cautions = []
        long = [pid for pid in people if not (is_number(pid) and len(pid) == 4)]
        if long:
            cautions.append(
                f"{len(long):,} people's names are not four digits ({abbreviate(long)}); AGW-family scripts read "
                "four characters and may take two people for one: --number-people gives them numbers"
            )
        unread = [camera for camera, _ in cameras if camera not in _AGW_CAMERAS]
        if unread:
            cautions.append(
                f"pre_process_sysu.py of the AGW family reads cam1 to cam6 only and leaves out {abbreviate(unread)}; "
                "add it to the script's rgb_cameras, rename it with --camera, or write --layout agw"
            )
        return wrong, cautions

    def _kept(self, own: str, pid: str, camera: str) -> str:
        path = PurePosixPath(own)
        self._seen(pid, camera, path.stem)
        return f"{camera}/{pid}/{path.name}"

    def _next(self, pid: str, camera: str, modality: Modality, suffix: str) -> str:
        number = self._number(pid, camera)
        if number > _AGW_NUMBERS:
            warnings.warn(
                f"a person has more than {_AGW_NUMBERS:,} images by one camera, whose numbers AGW-family scripts misread; "
                "write --layout agw, or fewer pairs",
                stacklevel=2,
            )
        return sysu_name(camera, pid, number, suffix)


class MarketNaming(Naming):
    """bounding_box_train/PID_c1s1_000001_00.jpg; JPEG only, as torchreid and fast-reid look for *.jpg."""

    three_channels = False  # both convert what they open
    suffixes = (".jpg",)

    def problems(self, people: Sequence[str], cameras: Sequence[tuple[str, Modality]]) -> Problems:
        numbers = {camera: camera_number(camera) for camera, _ in cameras}
        wrong = [
            f"camera {camera!r} does not end in one digit from 1, as Market's file names need; rename it, as --camera "
            f"{camera}=cam1"
            for camera, number in numbers.items()
            if number is None or not 1 <= number <= 9
        ]
        words = [pid for pid in people if not is_number(pid) or not int(pid)]
        if words:
            wrong.append(f"{abbreviate(words)}: people are numbers above 0 in Market's file names; use --number-people")
        cautions = same_number(cameras, apart=False)
        beyond = [pid for pid in people if is_number(pid) and int(pid) > _MARKET_PEOPLE]
        beyond += [camera for camera, number in numbers.items() if (number or 0) > _MARKET_CAMERAS]
        if beyond:
            cautions.append(
                f"torchreid's and fast-reid's Market1501 classes stop at people above {_MARKET_PEOPLE} and cameras above "
                f"{_MARKET_CAMERAS} ({abbreviate(beyond)}); register the tree as a set of its own, see docs/layouts.md"
            )
        return wrong, cautions

    def _kept(self, own: str, pid: str, camera: str) -> str:
        path = PurePosixPath(own)
        match = _MARKET_NAME.fullmatch(path.stem)
        if not match:
            raise InputError(f"{own} is not named like 0002_c1s1_000451_03.jpg; read its set as folder:PATH")
        self._seen(pid, match[2], match[3])
        return f"bounding_box_train/{pid}{match[1]}.jpg"

    def _next(self, pid: str, camera: str, modality: Modality, suffix: str) -> str:
        number = str(camera_number(camera))
        return f"bounding_box_train/{pid}_c{number}s1_{self._number(pid, number):06d}_00{suffix}"


def train_and_val(people: Iterable[str], val: Iterable[str]) -> tuple[list[str], list[str]]:
    """The train and val lists of a SYSU tree: people whom a set lists in `val` stay there.

    AGW-family scripts stop at an empty list, so an empty one gets the other's last person.
    """
    listed, held = sorted(set(people), key=natural_key), set(val)
    train, kept = [pid for pid in listed if pid not in held], [pid for pid in listed if pid in held]
    for empty, other in ((train, kept), (kept, train)):
        if not empty and len(other) > 1:
            empty.append(other.pop())
    return train, kept
