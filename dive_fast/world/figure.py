"""A walking pedestrian in body coordinates: limbs, garments and the pattern of the top."""

from __future__ import annotations

import math

import numpy as np
from PIL import ImageFilter

from dive_fast.world.accessories import (
    draw_backpack_side,
    draw_bag_upright,
    draw_handbag,
    draw_head_side,
    draw_head_upright,
    draw_satchel,
)
from dive_fast.world.canvas import HEIGHT, NEUTRAL_SHADE, WIDTH, Canvas, Part, Spine
from dive_fast.world.pedestrians import Pedestrian, Shot


def draw_figure(person: Pedestrian, shot: Shot) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draws a person in the pose of a shot.

    Returns the part map, uint8 [HEIGHT, WIDTH] of `Part`; the shade, float32 of the same shape, 1 = neutral; and
    the (row, column) of the middle of the shoulders, to which weaves are anchored.
    """
    canvas = Canvas(person, shot)
    if shot.view.startswith("side"):
        if shot.view == "side-left":
            canvas.sign = -canvas.sign
        _draw_side(canvas, person, shot)
    else:
        _draw_upright(canvas, person, shot, front=shot.view == "front")
    parts = np.array(canvas.parts)
    _apply_pattern(parts, canvas, person, shot.view)
    shade = np.asarray(canvas.shade.filter(ImageFilter.BoxBlur(1.5)), dtype=np.float32) / NEUTRAL_SHADE
    return parts, shade, (round(canvas.crown + 0.18 * canvas.unit), round(canvas.centre))


# Where outerwear ends and how much it flares: (body heights from the crown, factor of the hips). Other tops end at 0.49.
_HEM = {"jacket": (0.525, 1.04), "coat": (0.72, 1.30)}


def _bulk(person: Pedestrian) -> float:
    """How much outerwear widens a body."""
    return person.build * {"jacket": 1.08, "coat": 1.12}.get(person.top, 1.0)


def _leg(
    canvas: Canvas,
    person: Pedestrian,
    hip: float,
    knee: tuple[float, float],
    foot: tuple[float, float],
    tint: int,
    toe: float,
) -> None:
    """One leg with its garment and shoe; `knee` and `foot` are (x, y), `toe` points the shoe (0: to the viewer)."""
    b = person.build
    (kx, ky), (fx, fy) = knee, foot
    bare: Spine = [
        (hip, 0.50, 0.046 * b),
        (kx, ky, 0.030 * b),
        ((kx + fx) / 2, (ky + fy) / 2, 0.030 * b),
        (fx, fy, 0.020 * b),
    ]
    if person.bottom != "trousers":
        canvas.ribbon(Part.SKIN, bare, tint=tint)
    if toe:
        canvas.oval(Part.SHOES, fx + toe * 0.026, fy + 0.026, 0.056, 0.023, tint)
    else:
        canvas.oval(Part.SHOES, fx, fy + 0.022, 0.036, 0.028, tint)
    if person.bottom == "trousers":
        canvas.ribbon(
            Part.BOTTOM, [(hip, 0.48, 0.062 * b), (kx, ky, 0.043 * b), (fx, fy + 0.005, 0.035 * b)], tint=tint
        )
        canvas.crease([(kx - 0.03, ky - 0.006), (kx + 0.03, ky + 0.006)], 150)
        if person.bottom_material == "denim":  # the light outer seam of jeans
            canvas.crease([(hip - 0.03, 0.54), (kx - 0.022, ky), (fx - 0.018, fy)], 225)
    elif person.bottom == "shorts":
        t = (0.68 - 0.50) / (ky - 0.50)
        canvas.ribbon(Part.BOTTOM, [(hip, 0.48, 0.064 * b), (hip + t * (kx - hip), 0.68, 0.056 * b)], tint=tint)


def _skirt(canvas: Canvas, person: Pedestrian, half_width: float, sway: float) -> None:
    flare = 1.15 if person.top == "coat" else 1.45  # a coat holds it in
    canvas.ribbon(
        Part.BOTTOM,
        [(0, 0.44, half_width * 0.80), (0, 0.52, half_width * 1.05), (sway, 0.70, half_width * flare)],
        upright=True,
    )
    for x in (-0.5, 0.1, 0.6):
        canvas.crease([(x * half_width * 0.9, 0.53), (sway + x * half_width * 1.3, 0.70)], 150)


def _arm(
    canvas: Canvas,
    person: Pedestrian,
    shoulder: tuple[float, float],
    elbow: tuple[float, float],
    hand: tuple[float, float],
    tint: int,
) -> None:
    b = _bulk(person)
    (sx, sy), (ex, ey), (hx, hy) = shoulder, elbow, hand
    canvas.ribbon(Part.SKIN, [(sx, sy, 0.028 * b), (ex, ey, 0.025 * b), (hx, hy, 0.018 * b)], tint=tint)
    canvas.oval(Part.SKIN, hx, hy + 0.012, 0.022, 0.026, tint)
    if person.top == "tshirt":
        mx, my = sx + 0.62 * (ex - sx), sy + 0.62 * (ey - sy)
        canvas.ribbon(
            Part.TOP, [(sx * 0.84, sy - 0.014, 0.014 * b), (sx, sy + 0.012, 0.034 * b), (mx, my, 0.038 * b)], tint=tint
        )
    else:
        cx, cy = ex + 0.88 * (hx - ex), ey + 0.88 * (hy - ey)
        canvas.ribbon(
            Part.TOP,
            [(sx * 0.84, sy - 0.014, 0.014 * b), (sx, sy + 0.012, 0.033 * b), (ex, ey, 0.033 * b), (cx, cy, 0.027 * b)],
            tint=tint,
        )
        canvas.crease([(ex - 0.025, ey), (ex + 0.025, ey + 0.008)], 145)


def _trunk(canvas: Canvas, person: Pedestrian, shoulder: float, waist: float, hip: float) -> None:
    """The torso's garment, from the neck to its hem."""
    canvas.ribbon(Part.SKIN, [(0, 0.10, 0.030), (0, 0.19, 0.034)], upright=True, tint=-25)
    spine: Spine = [
        (0, 0.157, shoulder * 0.42),
        (0, 0.172, shoulder * 0.84),
        (0, 0.20, shoulder),
        (0, 0.29, shoulder * 0.96),
        (0, 0.40, waist),
        (0, 0.49, hip),
    ]
    if person.top in _HEM:
        hem, flare = _HEM[person.top]
        spine.append((0, hem, hip * flare))
    canvas.ribbon(Part.TOP, spine, upright=True)
    canvas.crease([(-waist * 0.7, 0.415), (0, 0.425), (waist * 0.7, 0.41)], 158)


def _draw_upright(canvas: Canvas, person: Pedestrian, shot: Shot, front: bool) -> None:
    """Front and back views: a walk seen end on, so legs and arms shorten in turn."""
    b, stride = _bulk(person), math.sin(shot.phase)
    shoulder, waist, hip = 0.108 * b, 0.088 * b, 0.094 * b
    for side in (-1, 1):
        lift = 0.042 * max(0.0, side * stride)
        tint = -22 if lift > 0.012 else 0  # the lifted leg is the one behind
        x = side * 0.050 * person.build
        _leg(canvas, person, x, (x * 1.02 + side * 0.004, 0.735 - lift * 0.4), (x * 0.95, 0.952 - lift), tint, 0)
    if person.bottom == "skirt":
        _skirt(canvas, person, 0.098 * person.build, 0.010 * stride)
    else:
        canvas.ribbon(Part.BOTTOM, [(0, 0.44, hip), (0, 0.535, 0.100 * person.build)], upright=True)
    _trunk(canvas, person, shoulder, waist, hip)
    if front:
        _front_details(canvas, person)
    hands = []
    for side in (-1, 1):
        swing = side * stride
        sx, ex = side * (shoulder + 0.004), side * (shoulder + 0.030)
        hand = (side * (shoulder + 0.030 + 0.014 * swing), 0.505 - 0.035 * abs(swing))
        _arm(canvas, person, (sx, 0.195), (ex, 0.345 - 0.01 * abs(swing)), hand, -10 if swing > 0 else 0)
        hands.append(hand)
    draw_head_upright(canvas, person, front)
    draw_bag_upright(canvas, person, front, shoulder, hands)


def _front_details(canvas: Canvas, person: Pedestrian) -> None:
    if person.top in _HEM:
        canvas.crease([(0, 0.18), (0, _HEM[person.top][0])], 70, 3)
        canvas.crease([(-0.045, 0.16), (-0.03, 0.22), (0, 0.25), (0.03, 0.22), (0.045, 0.16)], 95)
    elif person.top == "shirt":
        canvas.crease([(0, 0.18), (0, 0.49)], 150)
        canvas.ribbon(Part.SKIN, [(0, 0.15, 0.026), (0, 0.195, 0.002)], upright=True)
    else:
        canvas.oval(Part.SKIN, 0, 0.158, 0.036, 0.020)


def _draw_side(canvas: Canvas, person: Pedestrian, shot: Shot) -> None:
    """Side view, walking towards +x: legs and arms swing in opposition."""
    b, swing = _bulk(person), math.sin(shot.phase)
    _arm(canvas, person, (0, 0.20), (0.060 * swing, 0.345), (0.115 * swing + 0.030, 0.475), -45)
    for near, s in ((False, -swing), (True, swing)):
        foot_lift = 0.035 * max(0.0, -s)
        knee = (0.060 * s + 0.014 + foot_lift * 0.5, 0.735 - foot_lift * 0.2)
        _leg(canvas, person, 0.0, knee, (0.125 * s, 0.952 - foot_lift), 0 if near else -35, 1.0)
    depth = 0.073 * b
    if person.bottom == "skirt":
        _skirt(canvas, person, 0.080 * person.build, 0.016 * swing)
    else:
        canvas.ribbon(Part.BOTTOM, [(0, 0.44, depth * 0.95), (-0.004, 0.53, 0.074 * person.build)], upright=True)
    _trunk(canvas, person, depth, depth * 0.94, depth)
    if person.bag == "backpack":
        draw_backpack_side(canvas, depth)
    if person.bag == "satchel":
        canvas.strap(Part.BAG, [(0.012, 0.165), (-0.036, 0.44)], 0.011)
        draw_satchel(canvas, -0.040)
    hand = (-0.115 * swing + 0.030, 0.49 - 0.02 * abs(swing))
    _arm(canvas, person, (0, 0.205), (-0.060 * swing - 0.004, 0.345), hand, 12)
    if person.bag == "handbag":
        draw_handbag(canvas, *hand)
    draw_head_side(canvas, person)


def _apply_pattern(parts: np.ndarray, canvas: Canvas, person: Pedestrian, view: str) -> None:
    """Recolours, in place, the pixels of the top that show its second dye."""
    rows = (np.arange(HEIGHT)[:, None] - canvas.crown) / canvas.unit - 0.16
    columns = (np.arange(WIDTH)[None, :] - canvas.centre) / canvas.unit
    if person.pattern == "horizontal":
        second = np.floor(rows / 0.048) % 2 == 1
    elif person.pattern == "vertical":
        second = np.floor(columns / 0.036 + 0.5) % 2 == 1
    elif person.pattern == "half":
        second = rows > (0.20 if person.top == "coat" else 0.15)
    elif person.pattern == "logo" and view == "front":
        second = (np.abs(columns) < 0.052) & (np.abs(rows - 0.115) < 0.042)
    else:
        return
    parts[(parts == Part.TOP) & second] = Part.TOP_SECOND
