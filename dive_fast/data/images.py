"""Reading one image from a disk that may hold anything."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dive_fast.types import InputError

# What PIL's decoders raise on damaged data, besides OSError ("image file is truncated").
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def open_image(path: Path | str) -> Image.Image:
    """The image as fully decoded RGB; grey and palette images are converted.

    A missing, truncated or absurdly large file, one of 16 bits or floats, or no image at all raises `InputError` naming
    the file.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise InputError(
                    f"image {path} has {image.mode} pixels, which would clip to white; convert it to 8 bits"
                )
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist; check the path or make the list of images again") from error
    except (PermissionError, IsADirectoryError) as error:
        raise InputError(f"image {path} cannot be read: {error.strerror}; fix its permissions or remove it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image; remove it or fetch it again") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"image {path} is too large to be a photo of a person: {error}; remove it") from error
    except _BROKEN as error:
        raise InputError(f"image {path} is damaged ({error}); remove it or fetch it again") from error
