"""Heads, hats and bags: what a pedestrian wears above the collar and carries."""

from __future__ import annotations

from dive_fast.world.canvas import Canvas, Part
from dive_fast.world.pedestrians import Pedestrian


def draw_head_upright(canvas: Canvas, person: Pedestrian, front: bool) -> None:
    """Draws the head as seen from the front or from behind."""
    style = person.hair_style
    if style == "long":
        if front:  # falls on both shoulders and leaves the neck free
            for side in (-1, 1):
                canvas.ribbon(
                    Part.HAIR,
                    [(side * 0.044, 0.05, 0.016), (side * 0.050, 0.14, 0.017), (side * 0.056, 0.235, 0.013)],
                    upright=True,
                )
        else:
            canvas.ribbon(Part.HAIR, [(0, 0.05, 0.060), (0, 0.14, 0.063), (0, 0.26, 0.046)], upright=True)
    if style == "bun":
        canvas.oval(Part.HAIR, 0, -0.006, 0.030, 0.028)
    if style != "bald":
        canvas.oval(Part.HAIR, 0, 0.062, 0.058, 0.062)
    if style == "bald" or front:
        narrow = 0.045 if style == "long" else 0.050
        top = 0.006 if style == "bald" else 0.040
        canvas.oval(Part.SKIN, 0, (top + 0.140) / 2, narrow + (0.004 if style == "bald" else 0), (0.140 - top) / 2)
    if front:
        for x in (-0.019, 0.019):
            canvas.oval(Part.DARK, x, 0.080, 0.0085, 0.0075)
        canvas.crease([(-0.014, 0.119), (0.014, 0.119)], 90)
    _hat(canvas, person, 0, "front" if front else "hidden")


def draw_head_side(canvas: Canvas, person: Pedestrian) -> None:
    """Draws the head in profile, looking towards +x."""
    style = person.hair_style
    canvas.oval(Part.SKIN, 0.012, 0.070, 0.054, 0.068)
    canvas.oval(Part.SKIN, 0.064, 0.086, 0.013, 0.013)
    canvas.oval(Part.DARK, 0.047, 0.074, 0.008, 0.008)
    if style == "bun":
        canvas.oval(Part.HAIR, -0.062, 0.034, 0.028, 0.030)
    if style != "bald":
        canvas.ribbon(
            Part.HAIR,
            [
                (0.004, -0.004, 0.030),
                (-0.004, 0.012, 0.056),
                (-0.010, 0.036, 0.060),
                (-0.030, 0.050, 0.034),
                (-0.034, 0.100, 0.028),
                (-0.030, 0.122, 0.016),
            ],
            upright=True,
        )
    if style == "long":
        canvas.ribbon(Part.HAIR, [(-0.032, 0.060, 0.034), (-0.046, 0.16, 0.036), (-0.050, 0.27, 0.030)], upright=True)
    _hat(canvas, person, 0.002, "side")


def _hat(canvas: Canvas, person: Pedestrian, centre: float, brim: str) -> None:
    """A beanie covers the skull; a cap sits higher and has a brim, seen from the "front", "side" or "hidden"."""
    if person.hat == "beanie":
        canvas.ribbon(
            Part.HAT,
            [(centre, -0.022, 0.022), (centre, -0.006, 0.048), (centre, 0.030, 0.062), (centre, 0.058, 0.062)],
            upright=True,
        )
        canvas.crease([(centre - 0.06, 0.040), (centre + 0.06, 0.040)], 130)
    elif person.hat == "cap":
        canvas.ribbon(Part.HAT, [(centre, -0.014, 0.030), (centre, 0.006, 0.054), (centre, 0.044, 0.060)], upright=True)
        if brim == "front":
            canvas.oval(Part.HAT, centre, 0.050, 0.062, 0.014, -45)
        elif brim == "side":
            canvas.oval(Part.HAT, centre + 0.072, 0.042, 0.046, 0.011, -30)


def draw_bag_upright(
    canvas: Canvas, person: Pedestrian, front: bool, shoulder: float, hands: list[tuple[float, float]]
) -> None:
    """Draws what a front or back view shows of the bag; `hands` are the left and the right one in the image."""
    if person.bag == "backpack" and front:
        for side in (-1, 1):
            canvas.strap(Part.BAG, [(side * 0.062, 0.165), (side * 0.068, 0.30), (side * 0.090, 0.36)], 0.0135)
    elif person.bag == "backpack":
        canvas.ribbon(
            Part.BAG, [(0, 0.175, 0.050), (0, 0.195, 0.074), (0, 0.40, 0.084), (0, 0.425, 0.070)], upright=True
        )
        canvas.crease([(-0.06, 0.315), (-0.055, 0.33), (0.055, 0.33), (0.06, 0.315)], 95)
        canvas.oval(Part.BAG, 0, 0.172, 0.016, 0.012, -40)
    elif person.bag == "satchel":
        side = 1 if front else -1  # the same hip, seen from the other side
        canvas.strap(Part.BAG, [(-side * 0.070, 0.168), (side * (shoulder - 0.002), 0.44)], 0.011)
        draw_satchel(canvas, side * (shoulder + 0.008))
    elif person.bag == "handbag":
        x, y = hands[1 if front else 0]
        draw_handbag(canvas, x, y)


def draw_backpack_side(canvas: Canvas, depth: float) -> None:
    """Draws a backpack behind a trunk of half depth `depth`, with the strap around the shoulder."""
    bulge = [(-0.022, 0.185, 0.030), (-0.034, 0.21, 0.046), (-0.040, 0.40, 0.056), (-0.030, 0.42, 0.046)]
    canvas.ribbon(Part.BAG, [(x - depth, y, w) for x, y, w in bulge], upright=True)
    strap = [(-depth + 0.010, 0.175), (depth * 0.66, 0.215), (depth * 0.5, 0.30), (-depth + 0.006, 0.36)]
    canvas.strap(Part.BAG, strap, 0.0115)


def draw_satchel(canvas: Canvas, x: float) -> None:
    """Draws a satchel's body at hip height, centred on `x`."""
    canvas.ribbon(Part.BAG, [(x, 0.425, 0.060), (x, 0.44, 0.068), (x, 0.545, 0.068), (x, 0.555, 0.060)], upright=True)
    canvas.crease([(x - 0.06, 0.485), (x, 0.505), (x + 0.06, 0.485)], 90)


def draw_handbag(canvas: Canvas, x: float, y: float) -> None:
    """Draws a handbag hanging from a hand at (x, y)."""
    canvas.strap(
        Part.BAG,
        [(x - 0.034, y + 0.085), (x - 0.020, y + 0.015), (x + 0.020, y + 0.015), (x + 0.034, y + 0.085)],
        0.0075,
    )
    canvas.ribbon(Part.BAG, [(x, y + 0.075, 0.046), (x, y + 0.16, 0.062), (x, y + 0.17, 0.056)], upright=True)
