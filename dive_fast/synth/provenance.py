"""Provenance tags of generated images: that they are synthetic, and which plan, pair and engine made them.

PNG: text entries named `dive_fast:...`. JPEG: the same as JSON in the EXIF tag ImageDescription; Software is "dive_fast".
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import BinaryIO

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from dive_fast.data.images import opened_image
from dive_fast.io import canonical_json
from dive_fast.types import InputError

PREFIX = "dive_fast:"


def png_tags(notes: Mapping[str, str]) -> PngInfo:
    """Text entries of a PNG."""
    info = PngInfo()
    for name, value in {"synthetic": "1", **notes}.items():
        info.add_text(PREFIX + name, value)
    return info


def jpeg_tags(notes: Mapping[str, str]) -> Image.Exif:
    """EXIF of a JPEG."""
    exif = Image.Exif()
    exif[Base.Software] = "dive_fast"
    exif[Base.ImageDescription] = canonical_json({"synthetic": "1", **notes})
    return exif


def read_tags(data: bytes | BinaryIO) -> dict[str, str]:
    """The tags of an image; {} for one without, and for data that is no image."""
    try:
        with opened_image(io.BytesIO(data) if isinstance(data, bytes) else data, "generated") as image:
            found = {
                name.removeprefix(PREFIX): value
                for name, value in image.info.items()
                if isinstance(name, str) and name.startswith(PREFIX) and isinstance(value, str)
            }
            if found:
                return found
            text = image.getexif().get(Base.ImageDescription)
            notes = json.loads(text) if isinstance(text, str) and text.startswith("{") else {}
    except InputError:
        return {}
    return {str(name): str(value) for name, value in notes.items()} if isinstance(notes, dict) else {}
