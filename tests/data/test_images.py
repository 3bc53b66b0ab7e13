"""Opening images: what is converted, and what every kind of bad file is told."""

import os

import pytest
from PIL import Image

from dive_fast.data.images import open_image
from dive_fast.types import InputError
from tests.support.refusals import refused


def test_colours_survive(tmp_path):
    Image.new("RGB", (3, 5), (10, 200, 30)).save(tmp_path / "a.png")
    image = open_image(str(tmp_path / "a.png"))
    assert (image.mode, image.size, image.getpixel((2, 4))) == ("RGB", (3, 5), (10, 200, 30))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA"])
def test_eight_bit_modes_become_rgb(tmp_path, mode):
    Image.new("L", (4, 4), 255).convert(mode).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "name"), [("I;16", "a.png"), ("F", "a.tiff")])
def test_deep_pixels_do_not_clip_silently(tmp_path, mode, name):
    Image.new(mode, (4, 4), 1000).save(tmp_path / name)
    refused(f"{name} .*{mode}", open_image, tmp_path / name)


def test_file_is_closed(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg")
    before = len(os.listdir("/proc/self/fd"))
    images = [open_image(tmp_path / "a.jpg") for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(image.getpixel((3, 3)) is not None for image in images)


def test_missing_or_not_an_image(tmp_path):
    refused(r"gone\.jpg does not exist", open_image, tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    refused(r"folder\.jpg cannot be read", open_image, tmp_path / "folder.jpg")
    for content in (b"", b"not an image at all", b"<html>404</html>"):
        (tmp_path / "a.jpg").write_bytes(content)
        refused(r"a\.jpg is not an image", open_image, tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
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


def test_absurdly_large(tmp_path, monkeypatch):
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(r"a\.png is too large", open_image, tmp_path / "a.png")
