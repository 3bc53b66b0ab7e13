"""Code words of cameras, equal on every machine and in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dive_fast.types import Camera, Sample

# The codes of DiVE's published checkpoints.
PUBLISHED_CODES = {
    "cam1": "W5Eq",
    "cam2": "2Agp",
    "cam3": "8miP",
    "cam4": "HXY6",
    "cam5": "ITaw",
    "cam6": "dx1V",
    "cam7": "hFOc",
}
CODE_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def camera_code(name: str) -> str:
    """Returns the code word of a camera: the published one, else four characters derived from its name."""
    if name in PUBLISHED_CODES:
        return PUBLISHED_CODES[name]
    digest = hashlib.sha256(f"dive_fast camera {name}".encode()).digest()
    return "".join(CODE_LETTERS[b % len(CODE_LETTERS)] for b in digest[:4])


def cameras_of(samples: Sequence[Sample], ir_words: str = "") -> tuple[Camera, ...]:
    """Returns the cameras of a training set with their codes, sorted by name; `ir_words` follow infrared ones' codes."""
    modality = {s.camera: s.modality for s in samples}
    words = {"rgb": "", "ir": f" {ir_words}" if ir_words else ""}
    return tuple(Camera(name, modality[name], camera_code(name) + words[modality[name]]) for name in sorted(modality))
