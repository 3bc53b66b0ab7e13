"""RGB, infrared and monochrome cameras: their backdrops, light and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dive_fast.world.optics import NIR, Spectrum, random_spectrum
from dive_fast.world.pedestrians import RGB

IMAGE_HEIGHT, IMAGE_WIDTH = 128, 64


@dataclass(frozen=True)
class Backdrop:
    """A wall, a floor and one pillar or door; positions in image pixels, colours in 0..1."""

    wall: RGB
    floor: RGB
    feature: RGB
    horizon: float  # row where the floor begins, at the middle column
    slope: float  # of the horizon, rows per column
    feature_x: float
    feature_width: float  # 0: no feature
    feature_top: float  # row; 0 is a pillar, more is a door
    band: float  # row of a stripe along the wall, in the feature's colour; 0: none


@dataclass(frozen=True)
class WorldCamera:
    """A camera of the world. One without a spectrum is an RGB camera."""

    name: str
    spectrum: Spectrum | None
    backdrop: Backdrop
    words: str  # for captions
    cast: RGB = (1.0, 1.0, 1.0)
    gain: float = 1.0
    lift: float = 0.0  # black level
    noise: float = 0.012  # sigma, in 0..1
    blur: float = 0.05
    lamp: tuple[float, float] = (32.0, 56.0)  # x, y of the brightest spot
    falloff: float = 0.0  # how dark the image is one image height away from the lamp, 0..1


def _grey(value: float) -> RGB:
    return (value, value, value)


_HALL = Backdrop((0.74, 0.68, 0.56), (0.45, 0.38, 0.31), (0.55, 0.34, 0.22), 96, 0.10, 12, 15, 22, 0)
_CORRIDOR = Backdrop((0.56, 0.63, 0.66), (0.36, 0.40, 0.42), (0.82, 0.84, 0.82), 90, -0.14, 50, 9, 0, 60)
_DARK_CORRIDOR = replace(_CORRIDOR, wall=_grey(0.44), floor=_grey(0.24), feature=_grey(0.62))
_SQUARE = Backdrop((0.70, 0.80, 0.90), (0.62, 0.60, 0.55), (0.42, 0.52, 0.38), 84, 0.0, 54, 16, 36, 0)
_STREET = Backdrop((0.48, 0.36, 0.31), (0.30, 0.30, 0.33), (0.24, 0.20, 0.22), 100, 0.18, 8, 10, 0, 34)
_LOBBY = Backdrop((0.30, 0.30, 0.30), (0.50, 0.50, 0.50), (0.16, 0.16, 0.16), 92, 0.12, 46, 14, 26, 0)
_PARK = Backdrop((0.62, 0.70, 0.54), (0.66, 0.63, 0.56), (0.36, 0.46, 0.30), 80, 0.05, 10, 18, 20, 0)
_PLAZA = Backdrop((0.72, 0.74, 0.76), (0.54, 0.56, 0.58), (0.46, 0.50, 0.58), 88, -0.10, 52, 12, 0, 0)
_ALLEY = Backdrop((0.50, 0.44, 0.40), (0.58, 0.52, 0.46), (0.70, 0.62, 0.50), 94, 0.12, 48, 14, 30, 0)
_YARD = Backdrop((0.44, 0.52, 0.44), (0.46, 0.46, 0.44), (0.28, 0.36, 0.28), 86, 0.0, 30, 0, 0, 44)
_MARKET = Backdrop((0.80, 0.76, 0.70), (0.50, 0.46, 0.44), (0.60, 0.30, 0.26), 98, -0.16, 14, 10, 0, 0)
_STATION = Backdrop((0.52, 0.58, 0.68), (0.40, 0.42, 0.48), (0.66, 0.68, 0.70), 92, 0.08, 56, 14, 24, 0)


def _named(*cameras: WorldCamera) -> dict[str, WorldCamera]:
    return {camera.name: camera for camera in cameras}


# cam3 shares its place with cam2: equal geometry, other light.
SYSU_CAMERAS = _named(
    WorldCamera("cam1", None, _HALL, "bright warm indoor", (1.06, 1.0, 0.90), 1.04, 0.02, 0.012, 0.04),
    WorldCamera("cam2", None, _CORRIDOR, "dim cool indoor", (0.92, 0.99, 1.08), 0.84, 0.02, 0.016, 0.08),
    WorldCamera("cam4", None, _SQUARE, "bright cool outdoor", (0.97, 1.0, 1.05), 1.12, 0.05, 0.010, 0.03),
    WorldCamera("cam5", None, _STREET, "dim warm outdoor", (1.05, 0.98, 0.92), 0.88, 0.00, 0.014, 0.06),
    WorldCamera("cam3", NIR, _DARK_CORRIDOR, "dim indoor", _grey(1), 0.86, 0.03, 0.017, 0.08, (30.0, 52.0), 0.50),
    WorldCamera("cam6", NIR, _LOBBY, "dim outdoor", _grey(1), 0.95, 0.01, 0.021, 0.06, (40.0, 66.0), 0.68),
)
MARKET_CAMERAS = _named(
    WorldCamera("c1", None, _PARK, "bright warm outdoor", (1.04, 1.02, 0.94), 1.08, 0.03, 0.010, 0.04),
    WorldCamera("c2", None, _PLAZA, "bright cool outdoor", (0.96, 1.0, 1.06), 1.06, 0.04, 0.012, 0.06),
    WorldCamera("c3", None, _ALLEY, "dim warm outdoor", (1.05, 1.0, 0.92), 0.92, 0.02, 0.014, 0.05),
    WorldCamera("c4", None, _YARD, "dim cool outdoor", (0.95, 1.02, 1.0), 0.90, 0.02, 0.012, 0.09),
    WorldCamera("c5", None, _MARKET, "bright warm outdoor", (1.05, 0.99, 0.93), 1.02, 0.00, 0.012, 0.03),
    WorldCamera("c6", None, _STATION, "dim cool outdoor", (0.94, 1.0, 1.06), 0.94, 0.03, 0.018, 0.10),
)


def _random_backdrop(rng: np.random.Generator, chroma: float) -> Backdrop:
    def colour() -> RGB:
        r, g, b = np.clip(rng.uniform(0.24, 0.84) + chroma * rng.uniform(-1, 1, 3), 0, 1)
        return (float(r), float(g), float(b))

    return Backdrop(
        wall=colour(),
        floor=colour(),
        feature=colour(),
        horizon=float(rng.uniform(78, 102)),
        slope=float(rng.uniform(-0.2, 0.2)),
        feature_x=float(rng.choice([rng.uniform(4, 18), rng.uniform(46, 60)])),
        feature_width=float(rng.uniform(8, 18)) * float(rng.random() < 0.6),
        feature_top=float(rng.uniform(18, 38)) * float(rng.random() < 0.5),
        band=float(rng.uniform(28, 66)) * float(rng.random() < 0.2),
    )


def random_rgb_camera(rng: np.random.Generator) -> WorldCamera:
    """Draws an RGB camera whose words match its light and colour cast."""
    warmth, gain = float(rng.uniform(-1, 1)), float(rng.uniform(0.82, 1.14))
    words = ["bright" if gain > 0.98 else "dim", "warm" if warmth > 0 else "cool", _scene(rng)]
    return WorldCamera(
        "random",
        None,
        _random_backdrop(rng, 0.12),
        " ".join(words),
        cast=(1 + 0.07 * warmth, 1.0, 1 - 0.10 * warmth),
        gain=gain,
        lift=float(rng.uniform(0, 0.05)),
        noise=float(rng.uniform(0.008, 0.018)),
        blur=float(rng.uniform(0.02, 0.10)),
    )


def random_monochrome_camera(rng: np.random.Generator) -> WorldCamera:
    """Draws a camera that looks like infrared, lamp fall-off and noise included, with a random spectrum.

    It shows no NIR reflectance, so the base model learns monochrome photos from it and nothing of infrared.
    """
    gain = float(rng.uniform(0.82, 1.1))
    return WorldCamera(
        "monochrome",
        random_spectrum(rng),
        _random_backdrop(rng, 0.0),
        f"{'bright' if gain > 0.96 else 'dim'} {_scene(rng)}",
        gain=gain,
        lift=float(rng.uniform(0, 0.05)),
        noise=float(rng.uniform(0.012, 0.024)),
        blur=float(rng.uniform(0.02, 0.10)),
        lamp=(float(rng.uniform(20, 44)), float(rng.uniform(40, 76))),
        falloff=float(rng.uniform(0.0, 0.8)),
    )


def _scene(rng: np.random.Generator) -> str:
    return "indoor" if rng.random() < 0.5 else "outdoor"
