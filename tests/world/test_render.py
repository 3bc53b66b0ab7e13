"""Photos: deterministic, aligned across cameras, and grey where they should be."""

from dataclasses import replace

import numpy as np
import pytest

from dive_fast.world import pedestrians
from dive_fast.world.cameras import SYSU_CAMERAS, Backdrop, WorldCamera, random_monochrome_camera, random_rgb_camera
from dive_fast.world.canvas import HEIGHT, WIDTH, Part
from dive_fast.world.figure import draw_figure
from dive_fast.world.optics import NIR, Spectrum
from dive_fast.world.pedestrians import PATTERNS, VIEWS, sample_pedestrian, sample_shot
from dive_fast.world.render import render
from dive_fast.world.sheets import identity_sheet

BLACK_ROOM = Backdrop((0, 0, 0), (0, 0, 0), (0, 0, 0), 90, 0, 0, 0, 0, 0)


def draws(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [(sample_pedestrian(rng), sample_shot(rng)) for _ in range(count)]


@pytest.mark.parametrize("name", SYSU_CAMERAS)
def test_a_photo_is_a_function_of_its_arguments(name):
    (person, shot), (stranger, _) = draws(2)
    camera = SYSU_CAMERAS[name]
    photo = render(person, camera, shot)
    assert photo.shape == (128, 64, 3) and photo.dtype == np.uint8
    assert np.array_equal(photo, render(person, camera, shot))
    assert not np.array_equal(photo, render(person, camera, replace(shot, seed=shot.seed + 1)))
    assert not np.array_equal(photo, render(stranger, camera, shot))


def silhouette(spectrum: Spectrum | None, person, shot) -> np.ndarray:
    """Where a person stands out, bool [128, 64], from a black room."""
    camera = WorldCamera("probe", spectrum, BLACK_ROOM, "dim indoor")
    return render(person, camera, shot, noise=False).max(axis=2) > 0


@pytest.mark.parametrize("view", VIEWS)
def test_rgb_and_infrared_of_a_shot_share_their_silhouette(view):
    for person, shot in draws(6, seed=3):
        shot = replace(shot, view=view)
        rgb, infrared = silhouette(None, person, shot), silhouette(NIR, person, shot)
        assert np.array_equal(rgb, infrared)
        assert 0.1 < rgb.mean() < 0.6


def test_infrared_and_monochrome_photos_have_equal_channels():
    person, shot = draws(1)[0]
    for camera in (SYSU_CAMERAS["cam3"], SYSU_CAMERAS["cam6"], random_monochrome_camera(np.random.default_rng(0))):
        photo = render(person, camera, shot)
        assert np.array_equal(photo[..., 0], photo[..., 1]) and np.array_equal(photo[..., 0], photo[..., 2])


def test_monochrome_cameras_say_nothing_of_infrared_reflectance():
    """Over many cameras, a garment that is bright in infrared is no brighter than one that is dark in it."""
    person, shot = draws(1)[0]
    plain = replace(person, pattern="plain", bag="none", top="coat", top_material="cotton")
    shot = replace(shot, view="back")
    cameras = [random_monochrome_camera(np.random.default_rng(i)) for i in range(150)]

    def torso(camera: WorldCamera, dye: str) -> float:
        return float(render(replace(plain, top_dye=dye), camera, shot, noise=False)[56:88, 26:38].mean())

    bright, dark = ([torso(camera, dye) for camera in cameras] for dye in ("green", "brown"))  # NIR 1.0 and 0.0
    differences = np.subtract(bright, dark)
    assert abs(differences.mean()) < 3 * differences.std() / np.sqrt(len(cameras))
    assert differences.std() > 30
    assert torso(SYSU_CAMERAS["cam3"], "green") > 2 * torso(SYSU_CAMERAS["cam3"], "brown")


def test_noise_can_be_left_out():
    person, shot = draws(1)[0]
    clean = render(person, SYSU_CAMERAS["cam6"], shot, noise=False)
    noisy = render(person, SYSU_CAMERAS["cam6"], shot)
    corner = (slice(0, 10), slice(0, 64))
    assert clean[corner].astype(float).std() < noisy[corner].astype(float).std()


def test_random_cameras_name_their_light():
    rng = np.random.default_rng(4)
    for _ in range(30):
        camera = random_rgb_camera(rng)
        assert ("bright" in camera.words) == (camera.gain > 0.98)
        assert ("warm" in camera.words) == (camera.cast[0] > 1)


VARIANTS = {name: getattr(pedestrians, f"{name.upper()}S") for name in ("hair_style", "hat", "top", "bottom", "bag")}


@pytest.mark.parametrize("field", VARIANTS)
def test_every_variant_of_an_attribute_is_drawn_differently(field):
    person, shot = draws(1, seed=5)[0]
    for view in ("front", "back", "side-left"):
        variants = [replace(person, **{field: option}) for option in VARIANTS[field]]
        drawn = {draw_figure(variant, replace(shot, view=view))[0].tobytes() for variant in variants}
        assert len(drawn) == len(VARIANTS[field])


def test_patterns_show_the_second_dye_and_logos_only_at_the_front():
    person, shot = draws(1, seed=6)[0]
    for pattern in PATTERNS:
        for view in ("front", "back"):
            parts, shade, _ = draw_figure(replace(person, pattern=pattern, bag="none"), replace(shot, view=view))
            assert parts.shape == shade.shape == (HEIGHT, WIDTH)
            shown = bool((parts == Part.TOP_SECOND).any())
            assert shown == (pattern != "plain" and not (pattern == "logo" and view == "back"))


def test_sheet_has_a_row_per_identity_and_a_column_per_camera():
    sheet = identity_sheet(0, [1, 2, 3], zoom=1)
    assert sheet.mode == "RGB"
    assert sheet.width > 6 * 64 and sheet.height > 3 * 128
