"""Pedestrians: their dyes, materials and garments, and random identities and shots, reproducible by seed.

Reflectances are in 0..1. Importing this loads neither torch nor numpy.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

RGB = tuple[float, float, float]


class Paint(NamedTuple):
    """A colour: its RGB reflectance and its NIR term (of a dye, one part of the NIR reflectance)."""

    rgb: RGB
    nir: float


# The NIR terms follow neither hue nor luma.
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

HAIR_STYLES = ("short", "long", "bald", "bun")
HATS = ("none", "cap", "beanie")
TOPS = ("tshirt", "shirt", "jacket", "coat")
PATTERNS = ("plain", "horizontal", "vertical", "logo", "half")
BOTTOMS = ("trousers", "shorts", "skirt")
BAGS = ("none", "backpack", "satchel", "handbag")
VIEWS = ("front", "back", "side-left", "side-right")
# Fixed materials of hats, shoes and bags: their infrared depends on the dye alone.
ACCESSORY_MATERIAL = {
    "cap": "cotton",
    "beanie": "wool",
    "shoes": "leather",
    "backpack": "nylon",
    "satchel": "leather",
    "handbag": "leather",
}


@dataclass(frozen=True)
class Pedestrian:
    """An identity: everything that no camera or pose changes."""

    height: float  # relative to the tallest person, 0.84..1
    build: float  # relative body width, 0.82..1.22
    skin: str
    hair_style: str
    hair: str
    hat: str
    hat_dye: str
    top: str
    top_dye: str
    second_dye: str
    pattern: str
    top_material: str
    bottom: str
    bottom_dye: str
    bottom_material: str
    shoe_dye: str
    bag: str
    bag_dye: str


@dataclass(frozen=True)
class Shot:
    """Pose, placement, light and noise seed of a photo; cameras that see one moment share it."""

    phase: float  # of the walk, radians
    view: str
    scale: float
    dx: float  # image pixels
    dy: float  # image pixels
    gain: float  # of the light, around 1
    blur: float  # 0 (sharp) .. 0.2 (soft)
    seed: int
    mirrored: bool


def _pick(rng: np.random.Generator, options: tuple[str, ...], weights: tuple[float, ...] | None = None) -> str:
    p = None if weights is None else [weight / sum(weights) for weight in weights]
    return options[int(rng.choice(len(options), p=p))]


def sample_pedestrian(rng: np.random.Generator) -> Pedestrian:
    """Draws an identity; attributes are independent, so no garment predicts another."""
    dyes, materials = tuple(DYES), tuple(MATERIALS)
    top_dye = _pick(rng, dyes)
    return Pedestrian(
        height=float(rng.uniform(0.84, 1.0)),
        build=float(rng.uniform(0.82, 1.22)),
        skin=_pick(rng, tuple(SKINS)),
        hair_style=_pick(rng, HAIR_STYLES, (0.4, 0.34, 0.1, 0.16)),
        hair=_pick(rng, tuple(HAIRS)),
        hat=_pick(rng, HATS, (0.6, 0.2, 0.2)),
        hat_dye=_pick(rng, dyes),
        top=_pick(rng, TOPS),
        top_dye=top_dye,
        second_dye=_pick(rng, tuple(d for d in dyes if d != top_dye)),
        pattern=_pick(rng, PATTERNS, (0.36, 0.18, 0.14, 0.16, 0.16)),
        top_material=_pick(rng, materials),
        bottom=_pick(rng, BOTTOMS, (0.56, 0.22, 0.22)),
        bottom_dye=_pick(rng, dyes),
        bottom_material=_pick(rng, materials),
        shoe_dye=_pick(rng, dyes),
        bag=_pick(rng, BAGS, (0.34, 0.26, 0.2, 0.2)),
        bag_dye=_pick(rng, dyes),
    )


def sample_shot(rng: np.random.Generator) -> Shot:
    """Draws the pose and light of one photo."""
    return Shot(
        phase=float(rng.uniform(0, 2 * math.pi)),
        view=_pick(rng, VIEWS, (0.35, 0.3, 0.175, 0.175)),
        scale=float(rng.uniform(0.95, 1.05)),
        dx=float(rng.uniform(-3.5, 3.5)),
        dy=float(rng.uniform(-2.5, 2.5)),
        gain=float(rng.uniform(0.86, 1.12)),
        blur=float(rng.uniform(0.0, 0.14)),
        seed=int(rng.integers(2**31)),
        mirrored=bool(rng.random() < 0.5),
    )


def keyed_rng(*key: str | int) -> np.random.Generator:
    """Returns a generator that depends on its key alone, not on other draws."""
    import numpy as np

    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def world_pedestrian(seed: int, pid: int) -> Pedestrian:
    """Returns the identity `pid` of a world."""
    return sample_pedestrian(keyed_rng("world person", seed, pid))


def world_shot(seed: int, pid: int, camera: str, index: int) -> Shot:
    """Returns the shot of photo number `index` of `pid` by `camera`."""
    return sample_shot(keyed_rng("world shot", seed, pid, camera, index))
