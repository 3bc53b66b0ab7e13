"""`dataset_info.json` of DiVE: which code word stands for which camera.

Its `description` is "Custom metadata:" and a JSON text with `dataset` and `camera_to_description` {"cam1": "W5Eq", ...}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dive_fast.io import read_json
from dive_fast.types import Camera, InputError, Modality

MARK = "Custom metadata:"
# SYSU-MM01's cameras, and the one that DiVE made of Market-1501. What camN is in another set, its file does not say.
SYSU: dict[str, Modality] = {
    "cam1": "rgb", "cam2": "rgb", "cam3": "ir", "cam4": "rgb", "cam5": "rgb", "cam6": "ir", "cam7": "rgb",
}  # fmt: skip


def camera_codes(path: Path) -> tuple[dict[str, str], str]:
    """Codes by camera and the name of the set; a file without them raises `InputError`.

    They stand under `camera_to_description`, or turned round under `description_to_camera`.
    """
    data = read_json(path, "cameras")
    text = data.get("description") if isinstance(data, dict) else None
    if not isinstance(text, str) or MARK not in text:
        raise InputError(f"{path} has no description with {MARK!r}; name the cameras with --camera cam3=ir:8miP")
    try:
        metadata, _ = json.JSONDecoder().raw_decode(text.split(MARK, 1)[1].lstrip())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: what follows {MARK!r} is not JSON ({error}); copy the file again") from error
    codes = _codes(metadata)
    if not codes:
        raise InputError(f"{path} names no camera_to_description; name the cameras with --camera cam3=ir:8miP")
    return codes, str(metadata.get("dataset", ""))


def _codes(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        return {}
    forward, back = metadata.get("camera_to_description"), metadata.get("description_to_camera")
    if not isinstance(forward, dict) and isinstance(back, dict):
        forward = {name: code for code, name in back.items() if isinstance(name, str)}
    if not isinstance(forward, dict) or not all(isinstance(code, str) for code in forward.values()):
        return {}
    return forward


def cameras_of(path: Path | None, given: Sequence[Camera]) -> tuple[Camera, ...]:
    """The cameras that `given` names and those of a `dataset_info.json` beside them, sorted by name; `given` wins.

    No camera at all, or one whose modality nobody says, raises `InputError`.
    """
    cameras = {camera.name: camera for camera in given}
    if path is not None:
        codes, dataset = camera_codes(path)
        rest = {name: code for name, code in codes.items() if name not in cameras}
        unsaid = sorted(rest if "sysu" not in dataset.lower() else rest.keys() - SYSU.keys())
        if unsaid:
            raise InputError(
                f"{path} is of the set {dataset!r} and does not say which of its cameras are infrared ({', '.join(unsaid)});"
                f" say it for each with --camera {unsaid[0]}=ir:{rest[unsaid[0]]} or {unsaid[0]}=rgb:{rest[unsaid[0]]}"
            )
        cameras |= {name: Camera(name, SYSU[name], code) for name, code in rest.items()}
    if not cameras:
        raise InputError(
            "nothing names the cameras; give DiVE's dataset_info.json among the sources, or each camera as"
            " --camera cam3=ir:8miP (name, rgb or ir, code word)"
        )
    return tuple(cameras[name] for name in sorted(cameras))


def parse_camera(text: str) -> Camera:
    """The camera that `cam3=ir:8miP` names; anything else raises `InputError`."""
    name, equals, rest = text.partition("=")
    modality, colon, code = rest.partition(":")
    if not (name and equals and colon and code):
        raise InputError(f"--camera {text!r}: write NAME=rgb:CODE or NAME=ir:CODE, as cam3=ir:8miP")
    return Camera(name, modality, code)  # type: ignore[arg-type]  # checked by Camera
