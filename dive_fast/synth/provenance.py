"""Provenance tags of generated images: that they are synthetic, and which plan, pair and engine made them.

PNG: text entries named `dive_fast:...`. JPEG: the same as JSON in the EXIF tag ImageDescription; Software is "dive_fast".
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import BinaryIO

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from dive_fast.io import canonical_json

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


def content_hash(data: bytes) -> bytes:
    """8 bytes that equal files of `synth` share, whatever their tags: the hash of a PNG's or JPEG's own pixel stream.

    Decoding gives the same answer at twenty times the cost.
    """
    digest = hashlib.blake2b(digest_size=8)
    if data.startswith(b"\x89PNG"):
        at = 8
        while at < len(data):
            size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
            if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
                digest.update(data[at + 8 : at + 8 + size])
            at += 12 + size
    else:
        at = 2
        while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # to the scan
            size = 2 + int.from_bytes(data[at + 2 : at + 4])
            if not 0xE0 <= data[at + 1] <= 0xEF:  # APPn: EXIF
                digest.update(data[at : at + size])
            at += size
        digest.update(data[at:])
    return digest.digest()


def read_tags(data: bytes | BinaryIO) -> dict[str, str]:
    """The tags of an image; {} for one without, and for data that is no image."""
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            found = {
                name.removeprefix(PREFIX): value
                for name, value in image.info.items()
                if isinstance(name, str) and name.startswith(PREFIX) and isinstance(value, str)
            }
            if found:
                return found
            text = image.getexif().get(Base.ImageDescription)
            notes = json.loads(text) if isinstance(text, str) and text.startswith("{") else {}
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError):
        return {}
    return {str(name): str(value) for name, value in notes.items()} if isinstance(notes, dict) else {}
