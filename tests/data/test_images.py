"""Opening images: what is converted, which way up, and what every kind of bad file is told."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from dive_fast.data import images
from dive_fast.data.images import decode_image, header_size, open_image, read_header, upright_copy
from dive_fast.types import InputError
from tests.support.refusals import refused

# How the pixels of an upright image [height, width] are stored under each value of EXIF's Orientation (EXIF 2.32, tag 274).
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
UPRIGHT = np.zeros((32, 16, 3), np.uint8)  # a red, a green and a blue corner
UPRIGHT[:16, :8, 0] = UPRIGHT[:16, 8:, 1] = UPRIGHT[16:, :8, 2] = 255


def turned(path, orientation, **options):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT))).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    exact = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    path = turned(tmp_path / f"a.{suffix}", orientation, **exact)
    np.testing.assert_allclose(np.asarray(open_image(path)).astype(int), UPRIGHT, atol=3)
    assert header_size(path) == (32, 16)
    assert read_header(path, "a").upright is (orientation == 1)


def test_png_with_exif_behind_its_pixels(tmp_path):
    """As exiftool writes it."""
    Image.fromarray(np.ascontiguousarray(STORED[6](UPRIGHT))).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[274] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), UPRIGHT)
    assert header_size(tmp_path / "a.png") == (32, 16)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_unreadable_exif_costs_no_photo(tmp_path, exif):
    Image.fromarray(UPRIGHT).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (16, 32)
    assert header_size(tmp_path / "a.jpg") == (32, 16)


def test_colours_survive(tmp_path):
    Image.new("RGB", (3, 5), (10, 200, 30)).save(tmp_path / "a.png")
    image = open_image(str(tmp_path / "a.png"))
    assert (image.mode, image.size, image.getpixel((2, 4))) == ("RGB", (3, 5), (10, 200, 30))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_eight_bit_modes_become_rgb(tmp_path, mode):
    Image.new("L", (4, 4), 255).convert(mode).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "a.png"), (np.uint16, "a.tif"), (np.float32, "a.tiff")])
def test_deep_pixels_are_scaled_by_their_own_range(tmp_path, dtype, name):
    """Lowest to 0, highest to 255: 7,000 to 8,000, as a thermal camera counts, would clip to white."""
    Image.fromarray(np.array([[7000, 7200, 8000]], dtype)).save(tmp_path / name)
    assert np.asarray(open_image(tmp_path / name))[0].tolist() == [[0] * 3, [51] * 3, [255] * 3]
    Image.fromarray(np.full((4, 4), 1000, dtype)).save(tmp_path / name)
    assert open_image(tmp_path / name).getextrema() == ((0, 0),) * 3


def write_tiff(path, values: np.ndarray, photometric: int, sample_format: int) -> None:
    """An uncompressed TIFF of one channel, little-endian, by TIFF 6.0: 0 is white (photometric 0) or black (1)."""
    bits, data = 8 * values.itemsize, values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {256: values.shape[1], 257: values.shape[0], 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1}
    tags |= {278: values.shape[0], 279: len(data), 339: sample_format}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data)


@pytest.mark.parametrize(
    ("dtype", "kind", "white_is_zero"),  # Pillow opens no others with an inverted scale
    [
        (np.uint16, 1, True),
        *(
            (dtype, kind, False)
            for dtype, kind in zip((np.uint16, np.int16, np.uint32, np.float32), (1, 2, 1, 3), strict=True)
        ),
    ],
)
def test_deep_tiffs_of_every_kind_of_number_and_of_either_white(tmp_path, dtype, kind, white_is_zero):
    """A thermal camera's cold is dark, whichever number its file calls white; more than 31 bits stay large."""
    values = np.array([[0, 1, 5]], dtype) * dtype(6000 if dtype != np.uint32 else 800_000_000)
    write_tiff(tmp_path / "a.tif", values, 0 if white_is_zero else 1, kind)
    expected = [255, 204, 0] if white_is_zero else [0, 51, 255]
    assert np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_upright_copy_needs_no_exif(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.ascontiguousarray(STORED[6](UPRIGHT))).save(tmp_path / f"a.{suffix}", exif=exif)
    data = upright_copy((tmp_path / f"a.{suffix}").read_bytes(), "a")
    with Image.open(io.BytesIO(data)) as image:
        assert not image.getexif().get(274)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(open_image(tmp_path / f"a.{suffix}"))).mean() < 2
    assert upright_copy(data, "a") == data


def test_an_upright_copy_has_eight_bits(tmp_path):
    Image.fromarray(np.array([[7000, 7200, 8000]], np.uint16)).save(tmp_path / "a.tif")
    with Image.open(io.BytesIO(upright_copy((tmp_path / "a.tif").read_bytes(), "a"))) as image:
        assert np.asarray(image)[0].tolist() == [[0] * 3, [51] * 3, [255] * 3]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_deep_pixels_that_are_not_finite(tmp_path, value):
    Image.fromarray(np.array([[1, value]], np.float32)).save(tmp_path / "a.tif")
    refused(r"a\.tif holds NaN", open_image, tmp_path / "a.tif")


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "a.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused(r"a\.jpg is a Git LFS pointer", open_image, tmp_path / "a.jpg")
    refused(r"a\.jpg is a Git LFS pointer", read_header, tmp_path / "a.jpg", "a.jpg")


def test_file_is_closed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    before = len(os.listdir("/proc/self/fd"))
    opened = [open_image(tmp_path / "a.jpg") for _ in range(5)]
    assert header_size(tmp_path / "a.jpg") == (4, 4)
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(image.getpixel((3, 3)) is not None for image in opened)


def test_missing_or_not_an_image(tmp_path):
    refused(r"gone\.jpg does not exist", open_image, tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    refused(r"folder\.jpg cannot be read", open_image, tmp_path / "folder.jpg")
    for content in (b"", b"not an image at all", b"<html>404</html>"):
        (tmp_path / "a.jpg").write_bytes(content)
        refused(r"a\.jpg is not an image", open_image, tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["pipe.jpg", "endless.jpg", "loop.jpg"])
def test_files_without_end(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.jpg")
    os.symlink("/dev/zero", tmp_path / "endless.jpg")
    os.symlink("loop.jpg", tmp_path / "loop.jpg")
    refused(f"{name} cannot be read", open_image, tmp_path / name)
    assert header_size(tmp_path / name) is None


def test_postscript_never_reaches_ghostscript(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    refused(r"a\.jpg is not an image", open_image, tmp_path / "a.jpg")
    assert header_size(tmp_path / "a.jpg") is None


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_cut_anywhere(tmp_path, suffix):
    """A file cut short at any of 40 places raises `InputError` naming it, or is complete but for trailing bytes."""
    noise = Image.effect_noise((40, 30), 80).convert("RGB")
    noise.save(tmp_path / f"whole.{suffix}")
    whole, data = open_image(tmp_path / f"whole.{suffix}"), (tmp_path / f"whole.{suffix}").read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    complaints = 0
    for length in range(0, len(data), len(data) // 40):
        cut.write_bytes(data[:length])
        try:
            assert open_image(cut).tobytes() == whole.tobytes()
        except InputError as error:
            assert str(cut) in str(error)
            complaints += 1
    assert complaints >= 40


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged TIFF
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "gif"])
def test_damaged_anywhere(tmp_path, suffix):
    """Random bytes in the header raise `InputError` or give an image, and nothing else."""
    Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / f"a.{suffix}")
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    random = np.random.default_rng(5)
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(0, min(200, len(data)), 4):
            data[place] = random.integers(256)
        try:
            assert decode_image(bytes(data), "a").mode == "RGB"
        except InputError as error:
            assert len(str(error)) < 300


def test_absurdly_large(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64)
    open_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 64 - 1)
    refused(r"a\.png is too large", open_image, tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    refused(r"a\.png is too large", open_image, tmp_path / "a.png")
