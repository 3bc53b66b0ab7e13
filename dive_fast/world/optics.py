"""What light does to the world: dyes, materials and weaves, in RGB and in the near infrared (NIR).

All reflectances are floats in 0..1. NIR is a fixed function of material and dye, built so that the luma of
the RGB predicts it badly: a generator that only copies grey values cannot get infrared right.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

RGB = tuple[float, float, float]


class Paint(NamedTuple):
    """A colour: its RGB reflectance and its NIR term (for dyes, only one part of the reflectance)."""

    rgb: RGB
    nir: float


# The NIR terms are scattered on purpose: neither hue nor luma orders them.
DYES: dict[str, Paint] = {
    "black": Paint((0.09, 0.09, 0.10), 0.80),
    "white": Paint((0.85, 0.85, 0.83), 0.35),
    "grey": Paint((0.50, 0.50, 0.51), 0.05),
    "red": Paint((0.80, 0.11, 0.12), 0.60),
    "orange": Paint((0.95, 0.50, 0.08), 0.15),
    "yellow": Paint((0.94, 0.84, 0.16), 0.70),
    "green": Paint((0.14, 0.55, 0.18), 1.00),
    "teal": Paint((0.06, 0.56, 0.58), 0.20),
    "blue": Paint((0.14, 0.32, 0.85), 0.90),
    "navy": Paint((0.09, 0.13, 0.34), 0.10),
    "purple": Paint((0.48, 0.17, 0.62), 0.50),
    "pink": Paint((0.96, 0.58, 0.70), 0.95),
    "brown": Paint((0.42, 0.25, 0.13), 0.00),
}
MATERIALS: dict[str, float] = {"cotton": 0.70, "denim": 0.30, "wool": 0.90, "nylon": 0.06, "leather": 0.50}
SKINS: dict[str, Paint] = {
    "pale": Paint((0.93, 0.76, 0.66), 0.84),
    "tan": Paint((0.76, 0.56, 0.42), 0.78),
    "dark": Paint((0.42, 0.27, 0.19), 0.68),
}
HAIRS: dict[str, Paint] = {
    "black": Paint((0.08, 0.07, 0.07), 0.36),
    "brown": Paint((0.32, 0.19, 0.10), 0.48),
    "blond": Paint((0.86, 0.70, 0.38), 0.62),
    "ginger": Paint((0.70, 0.31, 0.10), 0.55),
    "silver": Paint((0.70, 0.70, 0.71), 0.42),
}
NIR_MATERIAL_SHARE = 0.3
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def garment_nir(material: str, dye: str) -> float:
    """NIR reflectance, 0.06..0.95, of a garment of this material dyed in this colour."""
    value = NIR_MATERIAL_SHARE * MATERIALS[material] + (1 - NIR_MATERIAL_SHARE) * DYES[dye].nir
    return min(max(value, 0.06), 0.95)


def luma(rgb: RGB) -> float:
    """Rec. 601 luma of an RGB triple in 0..1."""
    return float(np.dot(LUMA_WEIGHTS, rgb))


# Row 0 of the weave maps is "no weave" (skin, hair); row i + 1 is the i-th material.
WEAVE_ROW: dict[str, int] = {name: i + 1 for i, name in enumerate(MATERIALS)}
WEAVE_MARGIN = 32
# How strongly each row catches the light along the axis of a limb.
GLOSS = np.array([0.0, 0.0, 0.0, 0.0, 0.34, 0.12], dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Bilinear value noise, float [height, width] in 0..1, with features of `cell` pixels."""
    grid = rng.random((height // cell + 2, width // cell + 2))
    y, x = np.arange(height) / cell, np.arange(width) / cell
    rows = [np.interp(x, np.arange(grid.shape[1]), row) for row in grid]
    return np.stack([np.interp(y, np.arange(grid.shape[0]), column) for column in np.array(rows).T], axis=1)


@lru_cache(maxsize=4)
def weave_maps(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weaves on a canvas of supersampled pixels with WEAVE_MARGIN to spare on every side.

    Returns (relative, additive), both float32 [1 + materials, height + 2 margin, width + 2 margin]. Features
    are >= 12 supersampled pixels (6 image pixels) wide, so that they survive a factor-8 autoencoder: with half that,
    its 16 components dropped them, and with them what tells a garment's infrared. The additive part keeps them
    visible on dark dyes.
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
