"""The cameras of an import: DiVE's `dataset_info.json`, and those that the user names.

The file's `description` is "Custom metadata:" and a JSON text with `dataset` and `camera_to_description`, which maps
cameras to code words: {"cam1": "W5Eq", ...}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dive_fast.io import brief
from dive_fast.json_files import read_json
from dive_fast.types import Camera, InputError, Modality, shown

_START = "Custom metadata:"
_REMEDY = "name the cameras with --camera cam3=ir:8miP (name, rgb or ir, code word)"
# Cameras of SYSU-MM01, and cam7, which DiVE made of Market-1501. The file gives no modality for other data sets.
_SYSU: dict[str, Modality] = {f"cam{number}": "ir" if number in (3, 6) else "rgb" for number in range(1, 8)}


def read_codes(path: Path) -> tuple[dict[str, str], str]:
    """Returns code words by camera and the data set's name; a file without them raises `InputError`.

    The codes may also lie the other way round, under `description_to_camera`.
    """
    data = read_json(path, "cameras")
    text = data.get("description") if isinstance(data, dict) else None
    if not isinstance(text, str) or _START not in text:
        raise InputError(f"{path} has no description with {_START!r}; {_REMEDY}")
    try:
        metadata, _ = json.JSONDecoder().raw_decode(text.split(_START, 1)[1].lstrip())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: the text after {_START!r} is not JSON ({brief(error, 80)}); copy the file again"
        ) from error
    metadata = metadata if isinstance(metadata, dict) else {}
    codes, back = metadata.get("camera_to_description"), metadata.get("description_to_camera")
    if not isinstance(codes, dict) and isinstance(back, dict):
        codes = {name: code for code, name in back.items() if isinstance(name, str)}
    if not codes or not isinstance(codes, dict) or not all(isinstance(code, str) for code in codes.values()):
        raise InputError(f"{path} has no camera_to_description; {_REMEDY}")
    return codes, str(metadata.get("dataset", ""))


def find_cameras(path: Path | None, given: Sequence[Camera]) -> tuple[Camera, ...]:
    """Returns the cameras of a `dataset_info.json` and those `given`, which override it, sorted by name.

    No camera at all, or one of unknown modality, raises `InputError`.
    """
    cameras = {camera.name: camera for camera in given}
    if path is not None:
        codes, dataset = read_codes(path)
        rest = {name: code for name, code in codes.items() if name not in cameras}
        unknown = sorted(rest.keys() - (_SYSU.keys() if "sysu" in dataset.lower() else set()))
        if unknown:
            name, code = unknown[0], rest[unknown[0]]
            raise InputError(
                f"{path} of data set {shown(dataset)} gives no modality for {brief(', '.join(unknown), 80)};"
                f" name each with --camera {name}=ir:{code} or --camera {name}=rgb:{code}"
            )
        cameras |= {name: Camera(name, _SYSU[name], code) for name, code in rest.items()}
    if not cameras:
        raise InputError(f"no cameras are given; add DiVE's dataset_info.json to the sources, or {_REMEDY}")
    return tuple(cameras[name] for name in sorted(cameras))


def parse_camera(text: str) -> Camera:
    """Returns the camera that `cam3=ir:8miP` names; anything else raises `InputError`."""
    name, _, rest = text.partition("=")
    modality, _, code = rest.partition(":")
    if not (name and code):
        raise InputError(f"--camera {shown(text)}: write NAME=rgb:CODE or NAME=ir:CODE, as cam3=ir:8miP")
    return Camera(name, modality, code)  # type: ignore[arg-type]  # checked by Camera
