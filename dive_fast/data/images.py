"""Reading one image of an untrusted disk."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dive_fast.types import InputError

# What PIL's decoders raise on damaged data, besides OSError ("image file is truncated").
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def open_image(path: Path | str) -> Image.Image:
    """The image, fully decoded, as 8-bit RGB; any file that is not such an image raises `InputError` with its name."""
    return decode_image(Path(path), str(path))


def header_size(path: Path | str) -> tuple[int, int] | None:
    """Height and width from the file's header, without decoding; None when there is no readable header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (Image.DecompressionBombError, *_BROKEN):
        return None


def decode_image(source: bytes | Path, name: str) -> Image.Image:
    """As `open_image`, of a file or a file's bytes; errors call it `name`."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.mode[0] in "IF":
                raise InputError(
                    f"image {name} has {image.mode} pixels, which would clip to white; convert it to 8 bits"
                )
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"image {name} does not exist; check the path or make the list of images again") from error
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f"image {name} cannot be read: {error.strerror}; fix its permissions or remove it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image; remove it or fetch it again") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"image {name} is too large to be a photo of a person: {error}; remove it") from error
    except _BROKEN as error:
        raise InputError(f"image {name} is damaged ({error}); remove it or fetch it again") from error


def photo_pixels(path: Path | str, height: int, width: int) -> np.ndarray:
    """The photo as a model takes it, uint8 [height, width, 3]; raises as `open_image`."""
    return pixels_of(open_image(path), height, width)


def pixels_of(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The image resized by Lanczos, as uint8 [height, width, 3]."""
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def read_image_file(path: Path, name: str) -> bytes:
    """The bytes of an image's file, not decoded; an unreadable one raises `InputError`, which calls it `name`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"image {name} cannot be read: {error.strerror}; fix or remove it") from error
