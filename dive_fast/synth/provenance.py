"""Provenance tags of generated images: that they are synthetic, and which plan, pair and engine made them.

PNG: text entries named `dive_fast:...`. JPEG: the same as JSON in the EXIF tag ImageDescription; Software is "dive_fast".
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from dive_fast.data.images import opened_image
from dive_fast.io import canonical_json
from dive_fast.json_files import parse_json
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


def content_hash(data: bytes) -> bytes | None:
    """8 bytes that equal images of `synth` share, whatever their tags: of a hash of the encoded pixels.

    None for what is no whole PNG or JPEG. Decoding finds the same images at twenty times the cost.
    """
    if data.startswith(b"\x89PNG") and data.endswith(b"IEND\xaeB`\x82"):
        parts = _png_parts(data)
    elif data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9"):
        parts = _jpeg_parts(data)
    else:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _png_parts(data: bytes) -> Iterator[bytes]:
    """The chunks that make the pixels."""
    at = 8
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            yield data[at + 8 : at + 8 + size]
        at += 12 + size


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """All segments but APPn, as EXIF, and comments."""
    at = 2
    while at + 4 < len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:  # to the scan
        size = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not (0xE0 <= data[at + 1] <= 0xEF or data[at + 1] == 0xFE):
            yield data[at : at + size]
        at += size
    yield data[at:]


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
            notes = parse_json(text.encode()) if isinstance(text, str) and text.startswith("{") else {}
    except InputError:
        return {}
    return {str(name): str(value) for name, value in notes.items()} if isinstance(notes, dict) else {}
