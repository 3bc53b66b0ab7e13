"""One image into the new tree: copied, linked, or converted to what a layout's trainers can use."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

from PIL import Image

from dive_fast.data.images import ImageHeader, decode_image, read_header, read_image_file
from dive_fast.data.writers import new_path
from dive_fast.io import atomic_write, clear_disk_errors, sha256_bytes
from dive_fast.merge.config import How
from dive_fast.merge.inputs import MergeImage
from dive_fast.synth.provenance import jpeg_tags, png_tags, read_tags
from dive_fast.types import DiveError, InputError

JPEG_QUALITY = 95
# What a name in a layout promises (`layout_names.Naming.suffixes`).
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP"}


def place(root: Path, name: str, source: Path, how: How) -> None:
    """Copies or links `source` to `root/name`, unless an earlier run did; an image that does not lie upright is converted.

    A failing link raises `DiveError`.
    """
    if source.suffix.lower() in _FORMATS and _lies(source):
        _convert(root, name, source, None)
    else:
        _bring(root, name, source, how, None)


def place_image(root: Path, name: str, image: MergeImage, how: How, three_channels: bool) -> bool:
    """As `place`, for a training image; returns whether it was converted.

    An image that brings its name stays as it is, unless it has to be turned or has deeper pixels than 8 bits: trainers read
    no EXIF. Others are converted to the new suffix's format, and to RGB with `three_channels`: PNG and BMP without loss,
    JPEG at quality 95 without chroma subsampling.
    """
    source = image.sample.path
    suffix = Path(name).suffix
    if _is_usable(image, suffix, read_header(source, str(source)), three_channels):
        _bring(root, name, source, how, image.sha256)
        return False
    _convert(root, name, source, image.sha256)
    return True


def _convert(root: Path, name: str, source: Path, sha256: str | None) -> None:
    if not is_there(root / name):
        data = read_bytes(source, sha256)
        atomic_write(new_path(root, name), converted(data, Path(name).suffix, str(source)))


def _bring(root: Path, name: str, source: Path, how: How, sha256: str | None) -> None:
    """With `sha256`, a copy of other bytes raises `InputError`; links do not read the file."""
    if is_there(root / name):
        return
    target = new_path(root, name)
    if how == "copy":
        atomic_write(target, read_bytes(source, sha256))
        return
    with clear_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            (os.symlink if how == "symlink" else os.link)(source.resolve(), target)
        except OSError as error:
            if how == "link" and error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise DiveError(
                    f"{source} cannot be linked to {target} ({error.strerror}); hard links need one file system that has "
                    "them: use --how symlink or --how copy"
                ) from error
            raise


def _is_usable(image: MergeImage, suffix: str, header: ImageHeader, three_channels: bool) -> bool:
    """Whether trainers can read the file as it is under a name with `suffix`."""
    if not header.upright or header.deep:
        return False
    if image.own:
        return _FORMATS.get(image.sample.path.suffix.lower()) == _FORMATS[suffix.lower()]
    return header.format == _FORMATS[suffix.lower()] and (not three_channels or header.mode == "RGB")


def _lies(source: Path) -> bool:
    """Whether an image's EXIF turns it, which no trainer does."""
    try:
        return not read_header(source, str(source)).upright
    except InputError:  # a damaged image of a test half, which is copied as it is
        return False


def converted(data: bytes, suffix: str, where: str) -> bytes:
    """The image as RGB in another format, infrared in three equal channels; it keeps the marks of a synthetic one."""
    image, marks = decode_image(data, where), read_tags(data)
    stream = io.BytesIO()
    if suffix.lower() == ".png":
        image.save(stream, "PNG", pnginfo=png_tags(marks) if "synthetic" in marks else None)
    elif suffix.lower() == ".bmp":
        image.save(stream, "BMP")
    else:
        exif = jpeg_tags(marks) if "synthetic" in marks else Image.Exif()
        image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0, exif=exif)
    return stream.getvalue()


def read_bytes(source: Path, sha256: str | None) -> bytes:
    """A file's bytes; other bytes than were hashed raise `InputError`."""
    data = read_image_file(source, str(source))
    if sha256 is not None and sha256_bytes(data) != sha256:
        raise InputError(f"{source} was changed since it was hashed; dive-fast verify checks a synthesized dataset")
    return data


def is_there(path: Path) -> bool:
    """Whether a file, or a link, has the name."""
    return path.is_symlink() or path.exists()
