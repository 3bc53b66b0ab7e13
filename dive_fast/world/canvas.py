"""A canvas in body coordinates: a part map and a shade map without colours, equal for all cameras of a shot."""

from __future__ import annotations

import math
from enum import IntEnum

from PIL import Image, ImageDraw

from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH
from dive_fast.world.pedestrians import Pedestrian, Shot

SUPERSAMPLE = 2
HEIGHT, WIDTH = IMAGE_HEIGHT * SUPERSAMPLE, IMAGE_WIDTH * SUPERSAMPLE
FULL_HEIGHT = 106 * SUPERSAMPLE  # of the tallest person at scale 1
GROUND = 121 * SUPERSAMPLE
NEUTRAL_SHADE = 190  # the grey level that leaves a reflectance unchanged
BACKGROUND_SHADE = 140

Spine = list[tuple[float, float, float]]  # (x, y, half width), in body heights; y is 0 at the crown, 1 at the soles

_OVAL_ANGLES = tuple(math.pi * i / 8 for i in range(9))
# A cylinder's shade: (fraction of the half width, grey level), from its dark rim to its bright ridge.
_RINGS = ((1.0, 128), (0.74, 168), (0.46, 194), (0.20, 214))


class Part(IntEnum):
    """What a pixel shows; 0 is the background."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    TOP = 3
    TOP_SECOND = 4
    BOTTOM = 5
    SHOES = 6
    BAG = 7
    HAT = 8
    DARK = 9  # eyes


class Canvas:
    """The part map and the shade map of one person in one shot (PIL "L" images of HEIGHT x WIDTH)."""

    def __init__(self, person: Pedestrian, shot: Shot):
        self.unit = FULL_HEIGHT * person.height * shot.scale
        self.crown = GROUND + shot.dy * SUPERSAMPLE - self.unit
        self.centre = WIDTH / 2 + shot.dx * SUPERSAMPLE
        self.sign = -1.0 if shot.mirrored else 1.0
        self.parts = Image.new("L", (WIDTH, HEIGHT), Part.BACKGROUND)
        self.shade = Image.new("L", (WIDTH, HEIGHT), BACKGROUND_SHADE)
        self._part_pen = ImageDraw.Draw(self.parts)
        self._shade_pen = ImageDraw.Draw(self.shade)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return (self.centre + self.sign * x * self.unit, self.crown + y * self.unit)

    def ribbon(self, part: Part, spine: Spine, upright: bool = False, tint: int = 0) -> None:
        """Draws a limb or a trunk along a spine, shaded like a cylinder lit from the upper left.

        Cross-sections are horizontal if `upright`, else at right angles to the spine; `tint` brightens or darkens.
        """
        middle = [self._at(x, y) for x, y, _ in spine]
        if upright:
            across = [(self.sign * w * self.unit, 0.0) for _, _, w in spine]
        else:
            normals = _normals(middle, self.sign)
            across = [
                (nx * w * self.unit, ny * w * self.unit) for (nx, ny), (_, _, w) in zip(normals, spine, strict=True)
            ]
        rims = list(zip(middle, across, strict=True))
        for inset, level in _RINGS:
            shift = (inset - 1.0) * 0.22 * self.sign  # the light comes from the image's left, mirrored or not
            low, high = shift - inset, shift + inset
            outline = [(x + ax * low, y + ay * low) for (x, y), (ax, ay) in rims]
            outline += [(x + ax * high, y + ay * high) for (x, y), (ax, ay) in reversed(rims)]
            if inset == 1.0:
                self._part_pen.polygon(outline, fill=int(part))
            self._shade_pen.polygon(outline, fill=level + tint)

    def oval(self, part: Part, x: float, y: float, rx: float, ry: float, tint: int = 0) -> None:
        """Draws a shaded ellipse."""
        spine = [(x, y - ry * math.cos(a), rx * math.sin(a)) for a in _OVAL_ANGLES]
        self.ribbon(part, spine, upright=True, tint=tint)

    def strap(self, part: Part, points: list[tuple[float, float]], width: float) -> None:
        """Draws a band of half width `width` through some points."""
        self.ribbon(part, [(x, y, width) for x, y in points])

    def crease(self, points: list[tuple[float, float]], level: int, pixels: int = 2) -> None:
        """Draws a fold or a seam: shade only."""
        self._shade_pen.line([self._at(x, y) for x, y in points], fill=level, width=pixels)


def _normals(points: list[tuple[float, float]], sign: float) -> list[tuple[float, float]]:
    """Unit normals of a polyline in pixels, pointing to the body's own right."""
    out = []
    last = len(points) - 1
    for i in range(len(points)):
        (x0, y0), (x1, y1) = points[max(i - 1, 0)], points[min(i + 1, last)]
        length = sign * (math.hypot(x1 - x0, y1 - y0) or 1.0)
        out.append(((y1 - y0) / length, (x0 - x1) / length))
    return out
