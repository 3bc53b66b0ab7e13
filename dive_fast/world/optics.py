"""Reflectances outside RGB, and weaves.

Near infrared (NIR) is a fixed function of material and dye that the luma of RGB predicts badly: a generator that copies grey
values gets infrared wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dive_fast.world.pedestrians import DYES, HAIRS, MATERIALS, SKINS

_MATERIAL_FRACTION = 0.3
_DARKEST, _BRIGHTEST = 0.06, 0.95


@dataclass(frozen=True)
class Spectrum:
    """Reflectances, 0..1, of every surface in the one channel of an infrared or monochrome camera."""

    dyes: Mapping[str, float]
    materials: Mapping[str, float]
    skins: Mapping[str, float]
    hairs: Mapping[str, float]

    def garment(self, material: str, dye: str) -> float:
        """Returns the reflectance of a dyed material."""
        value = _MATERIAL_FRACTION * self.materials[material] + (1 - _MATERIAL_FRACTION) * self.dyes[dye]
        return min(max(value, _DARKEST), _BRIGHTEST)


NIR = Spectrum(
    {name: dye.nir for name, dye in DYES.items()},
    MATERIALS,
    {name: skin.nir for name, skin in SKINS.items()},
    {name: hair.nir for name, hair in HAIRS.items()},
)


def random_spectrum(rng: np.random.Generator) -> Spectrum:
    """Draws every reflectance alone: what is bright in it says nothing of colours or of infrared."""

    def draw(names: Mapping[str, object], low: float, high: float) -> dict[str, float]:
        return {name: float(rng.uniform(low, high)) for name in names}

    surfaces = _DARKEST, _BRIGHTEST
    return Spectrum(draw(DYES, 0, 1), draw(MATERIALS, 0, 1), draw(SKINS, *surfaces), draw(HAIRS, *surfaces))


# Row 0 of the weave maps has no weave (skin, hair).
WEAVE_ROW: dict[str, int] = {name: i + 1 for i, name in enumerate(MATERIALS)}
WEAVE_MARGIN = 32
# Gloss along the axis of a limb, by row.
GLOSS = np.array([0.0, 0.0, 0.0, 0.0, 0.34, 0.12], dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Bilinear value noise, float [height, width] in 0..1, with features of `cell` pixels."""
    grid = rng.random((height // cell + 2, width // cell + 2))
    y, x = np.arange(height) / cell, np.arange(width) / cell
    rows = [np.interp(x, np.arange(grid.shape[1]), row) for row in grid]
    return np.stack([np.interp(y, np.arange(grid.shape[0]), column) for column in np.array(rows).T], axis=1)


@lru_cache(maxsize=4)
def weave_maps(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns weaves (relative, additive) on a supersampled canvas with WEAVE_MARGIN on every side.

    Both are float32 [1 + materials, height + 2 margin, width + 2 margin]. Features are at least 12 supersampled pixels wide,
    which a factor-8 autoencoder of 16 channels keeps; it loses those of 6. The additive part shows on dark dyes.
    """
    h, w = height + 2 * WEAVE_MARGIN, width + 2 * WEAVE_MARGIN
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    relative = np.zeros((len(MATERIALS) + 1, h, w))
    additive = np.zeros_like(relative)

    twill = np.sin(2 * np.pi * (x + 0.8 * y) / 24)
    relative[WEAVE_ROW["denim"]], additive[WEAVE_ROW["denim"]] = 0.15 * twill, 0.045 * twill
    knit = np.sin(2 * np.pi * x / 26) * np.sin(2 * np.pi * y / 26)
    relative[WEAVE_ROW["wool"]], additive[WEAVE_ROW["wool"]] = 0.24 * knit, 0.06 * knit
    band = np.cos(2 * np.pi * (x - w / 2 + 5) / 24) ** 3
    relative[WEAVE_ROW["nylon"]], additive[WEAVE_ROW["nylon"]] = 0.10 * band - 0.06, 0.08 * band
    patch = _smooth_noise(np.random.default_rng(5), h, w, 18)
    bright = np.clip((patch - 0.58) / 0.12, 0, 1)
    edge = np.clip(1 - np.abs(patch - 0.48) / 0.12, 0, 1)
    relative[WEAVE_ROW["leather"]], additive[WEAVE_ROW["leather"]] = -0.32 * edge, 0.22 * bright
    return relative.astype(np.float32), additive.astype(np.float32)
