"""Reading one image of an untrusted disk: a plain file of a known format, upright, as 8-bit RGB."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from struct import error as struct_error
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from dive_fast.data.files import read_plain, require_plain
from dive_fast.io import POINTER, brief, is_pointer
from dive_fast.types import InputError

# Pillow tries every format that it knows by default, and starts Ghostscript for PostScript.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
MAX_PIXELS = 50 << 20  # the largest cameras of phones; the decoded image takes 157 MB
MAX_BYTES = 4 * MAX_PIXELS  # a file that holds more is no photo

# How to turn an image with this value of EXIF's Orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)
_SAVING: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
_PNG_EXIF = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}  # Pillow's names of what precedes the pixels


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header says: Pillow's `format` and `mode`, the upright size, and whether the pixels lie upright."""

    format: str
    mode: str
    height: int
    width: int
    upright: bool

    @property
    def deep(self) -> bool:
        """Whether the pixels have more than 8 bits, which `decode_image` scales."""
        return self.mode[0] in "IF"


def open_image(path: Path | str) -> Image.Image:
    """The image, fully decoded and upright, as 8-bit RGB; see `decode_image`."""
    return decode_image(read_image_file(Path(path), str(path)), str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """The image in a file's bytes, turned upright by its EXIF, as 8-bit RGB.

    Deeper pixels, as those of thermal cameras, are scaled: the image's lowest value becomes 0 and its highest 255. Data
    that is no such image, is damaged, or has more than `MAX_PIXELS` raises `InputError`, which calls the image `name`.
    """
    with opened_image(io.BytesIO(data), name) as image:
        turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))  # Pillow itself turns TIFF
        tags = dict(getattr(image, "tag_v2", {}))
        image.load()
        upright = image if turn is None else image.transpose(turn)
        return _eight_bits(_deep_values(upright, tags), name) if upright.mode[0] in "IF" else upright.convert("RGB")


def upright_copy(data: bytes, name: str) -> bytes:
    """The bytes of an image for programs that read no EXIF: its own, or those of an upright 8-bit copy in its format.

    Raises as `decode_image`.
    """
    header = read_header(data, name)
    if header.upright and not header.deep:
        return data
    stream = io.BytesIO()
    decode_image(data, name).save(stream, header.format, **_SAVING.get(header.format, {}))
    return stream.getvalue()


def read_header(source: bytes | Path, name: str) -> ImageHeader:
    """The header of a file or a file's bytes, without decoding; raises as `decode_image`."""
    with opened_image(io.BytesIO(source) if isinstance(source, bytes) else source, name) as image:
        orientation = _orientation(image)
        width, height = image.size
        tags: Any = image
        if image.format == "TIFF":  # some versions of Pillow give the upright size
            width, height = tags.tag_v2[256], tags.tag_v2[257]
        if orientation in _LYING:
            width, height = height, width
        kind = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG that others follow, as phones write
        return ImageHeader(kind, image.mode, height, width, orientation not in _TURNS)


def header_size(path: Path | str) -> tuple[int, int] | None:
    """Height and width of the upright image by its header; None when there is no readable header."""
    try:
        header = read_header(Path(path), str(path))
    except InputError:
        return None
    return header.height, header.width


def image_problem(path: Path) -> str | None:
    """Why a file is no usable image, found by decoding it; None for a good one."""
    try:
        open_image(path)
    except InputError as error:
        return str(error)
    return None


def read_image_file(path: Path, name: str) -> bytes:
    """The bytes of an image's file, not decoded; an unreadable one raises `InputError`, which calls it `name`."""
    with _errors(name):
        return read_plain(path, name, MAX_BYTES)


def photo_pixels(path: Path | str, height: int, width: int) -> np.ndarray:
    """The photo as a model takes it, uint8 [height, width, 3]; raises as `open_image`."""
    return pixels_of(open_image(path), height, width)


def pixels_of(image: Image.Image, height: int, width: int) -> np.ndarray:
    """The image resized by Lanczos, as uint8 [height, width, 3]."""
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


@contextmanager
def opened_image(source: BinaryIO | Path, name: str) -> Iterator[Image.Image]:
    """The image, not decoded yet, while the block runs; whatever goes wrong there raises as `decode_image`."""
    with _errors(name):
        if isinstance(source, Path):
            require_plain(source, name, MAX_BYTES)
        with _opened(source, name) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width:,} x {image.height:,} pixels, at most {MAX_PIXELS:,} are read"
                raise InputError(f"image {name} is too large to be a photo of a person: {size}; shrink or remove it")
            yield image


def _opened(source: BinaryIO | Path, name: str) -> Image.Image:
    try:
        return Image.open(source, formats=FORMATS)
    except UnidentifiedImageError as error:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            stream.seek(0)
            if is_pointer(stream.read(100)):
                raise InputError(f"image {name} {POINTER}") from error
        raise


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"image {name} does not exist; check the path or make the list of images again") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image of {', '.join(FORMATS)}; remove it or fetch it again") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"image {name} is too large to be a photo of a person: {error}; remove it") from error
    except OSError as error:
        if error.errno is not None:
            raise InputError(f"image {name} cannot be read: {error.strerror}; fix or remove it") from error
        raise InputError(f"image {name} is damaged ({brief(error, 80)}); remove it or fetch it again") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged data
        raise InputError(f"image {name} is damaged ({brief(error, 80)}); remove it or fetch it again") from error


def _orientation(image: Image.Image) -> int:
    """EXIF's Orientation; 1 (upright) for an image without it, or with EXIF that nobody can read."""
    if image.format == "PNG" and not (_PNG_EXIF & image.info.keys()) and not _has_late_exif(image):
        return 1  # Pillow would decode the image to be sure
    try:
        value = image.getexif().get(Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, struct_error):
        return 1
    return value if isinstance(value, int) else 1


def _has_late_exif(image: Any) -> bool:
    """Whether a PNG has EXIF behind its pixels, where some programs write it."""
    stream, at = image.fp, image.fp.tell()
    stream.seek(8)
    while len(head := stream.read(8)) == 8 and head[4:] != b"eXIf":
        stream.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    stream.seek(at)
    return bool(head[4:] == b"eXIf")


def _deep_values(image: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    """The values of more than 8 bits as float32, larger ones lighter; `tags` are a TIFF's, of which Pillow heeds fewer."""
    values = np.array(image)
    if (
        values.dtype == np.int32
        and Base.PhotometricInterpretation in tags
        and tags.get(Base.SampleFormat, (1,))[0] == 1
    ):
        values = values.view(np.uint32)
    floats = values.astype(np.float32)
    return -floats if tags.get(Base.PhotometricInterpretation) == 0 else floats  # 0: white is the smallest


def _eight_bits(values: np.ndarray, name: str) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"image {name} holds NaN or infinity; remove it or convert it to 8 bits")
    scale = 255 / (high - low) if high > low else 0.0
    values *= scale
    values -= low * scale
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8)).convert("RGB")
