"""Photos of the world: reflectances, weaves and shading before a backdrop, then a camera's light, blur and noise."""

from __future__ import annotations

import zlib

import numpy as np

from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH, Backdrop, WorldCamera
from dive_fast.world.canvas import HEIGHT, SUPERSAMPLE, WIDTH, Part
from dive_fast.world.figure import draw_figure
from dive_fast.world.optics import GLOSS, WEAVE_MARGIN, WEAVE_ROW, Spectrum, weave_maps
from dive_fast.world.pedestrians import ACCESSORY_MATERIAL, DYES, HAIRS, RGB, SKINS, Pedestrian, Shot

_DARK: RGB = (0.07, 0.06, 0.06)


def _garments(person: Pedestrian) -> dict[Part, tuple[str, str]]:
    """(material, dye) of every part that is cloth; absent hats and bags are never drawn."""
    out = {
        Part.TOP: (person.top_material, person.top_dye),
        Part.TOP_SECOND: (person.top_material, person.second_dye),
        Part.BOTTOM: (person.bottom_material, person.bottom_dye),
        Part.SHOES: (ACCESSORY_MATERIAL["shoes"], person.shoe_dye),
    }
    if person.hat != "none":
        out[Part.HAT] = (ACCESSORY_MATERIAL[person.hat], person.hat_dye)
    if person.bag != "none":
        out[Part.BAG] = (ACCESSORY_MATERIAL[person.bag], person.bag_dye)
    return out


def reflectances(person: Pedestrian, spectrum: Spectrum) -> dict[Part, float]:
    """Returns the reflectance, 0..1, of every surface of a person."""
    found = {Part.SKIN: spectrum.skins[person.skin], Part.HAIR: spectrum.hairs[person.hair], Part.DARK: 0.10}
    return found | {part: spectrum.garment(*garment) for part, garment in _garments(person).items()}


def _palette(person: Pedestrian, spectrum: Spectrum | None) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance, float32 [parts, 3 for RGB or 1], and weave row, intp [parts], of every part."""
    weave = np.zeros(len(Part), dtype=np.intp)
    garments = _garments(person)
    for part, (material, _) in garments.items():
        weave[part] = WEAVE_ROW[material]
    if spectrum is not None:
        levels = reflectances(person, spectrum)
        return np.array([[levels.get(part, 0.0)] for part in Part], dtype=np.float32), weave
    rgb = np.zeros((len(Part), 3), dtype=np.float32)
    rgb[Part.SKIN], rgb[Part.HAIR], rgb[Part.DARK] = SKINS[person.skin].rgb, HAIRS[person.hair].rgb, _DARK
    for part, (_, dye) in garments.items():
        rgb[part] = DYES[dye].rgb
    return rgb, weave


def _box_down(values: np.ndarray) -> np.ndarray:
    """Averages blocks of supersampled pixels: [HEIGHT, WIDTH, C] to [IMAGE_HEIGHT, IMAGE_WIDTH, C]."""
    total: np.ndarray = values[0::2, 0::2] + values[1::2, 0::2]
    total += values[0::2, 1::2]
    total += values[1::2, 1::2]
    total *= 1 / SUPERSAMPLE**2
    return total


def _covered_box(parts: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around the person, aligned to image pixels."""
    rows, columns = np.flatnonzero(parts.any(axis=1)), np.flatnonzero(parts.any(axis=0))
    return slice(rows[0] & ~1, (rows[-1] | 1) + 1), slice(columns[0] & ~1, (columns[-1] | 1) + 1)


def _weave_window(box: tuple[slice, slice], anchor: tuple[int, int]) -> tuple[slice, slice]:
    """The window of the weave maps for a box; weaves move with the person."""
    row = int(np.clip(WEAVE_MARGIN - (anchor[0] - 64), 0, 2 * WEAVE_MARGIN))
    column = int(np.clip(WEAVE_MARGIN - (anchor[1] - WIDTH // 2), 0, 2 * WEAVE_MARGIN))
    return slice(row + box[0].start, row + box[0].stop), slice(column + box[1].start, column + box[1].stop)


def _foreground(
    person: Pedestrian, shot: Shot, spectrum: Spectrum | None
) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]]:
    """The lit person, premultiplied, float32 [h, w, C], its coverage [h, w, 1], and the box of the image they fill."""
    parts, shade, anchor = draw_figure(person, shot)
    box = _covered_box(parts)
    parts, shade = parts[box], shade[box]
    colours, weaves = _palette(person, spectrum)
    relative, additive = weave_maps(HEIGHT, WIDTH)
    window = _weave_window(box, anchor)

    weave_of = weaves[parts]
    light, sheen = shade.copy(), np.zeros_like(shade)
    ridge = np.clip((shade - 0.98) * 7, 0, 1)
    for weave in set(weaves.tolist()) - {0, WEAVE_ROW["cotton"]}:  # these two are smooth
        here = (weave_of == weave) * shade
        light += here * relative[weave][window]
        sheen += here * (additive[weave][window] + GLOSS[weave] * ridge)
    covered = (parts > 0).astype(np.float32)[..., None]
    lit = np.take(colours, parts, axis=0)
    lit *= light[..., None]
    lit += sheen[..., None]
    np.clip(lit, 0.01, 1.0, out=lit)
    lit *= covered
    in_image = (slice(box[0].start // 2, box[0].stop // 2), slice(box[1].start // 2, box[1].stop // 2))
    return _box_down(lit), _box_down(covered), in_image


def _colour(rgb: RGB, level: float = 1.0) -> np.ndarray:
    return np.array(rgb, dtype=np.float32) * np.float32(level)


def _backdrop(backdrop: Backdrop, shot: Shot) -> np.ndarray:
    """The empty scene, float32 [IMAGE_HEIGHT, IMAGE_WIDTH, 3], jittered a little per shot."""
    rng = np.random.default_rng([shot.seed, 1])
    dx, dy, wall_level, floor_level = rng.uniform(-1, 1, 4).tolist()
    x = np.arange(IMAGE_WIDTH, dtype=np.float32)[None, :]
    y = np.arange(IMAGE_HEIGHT, dtype=np.float32)[:, None]
    horizon = backdrop.horizon + 2.5 * dy + backdrop.slope * (x - 32)  # [1, W]
    floor = np.clip(y - horizon + 0.5, 0, 1)[..., None]
    feature = np.zeros_like(floor)
    if backdrop.feature_width > 0:
        inside = np.clip(backdrop.feature_width / 2 + 0.5 - np.abs(x - backdrop.feature_x - 3 * dx), 0, 1)
        feature = (inside * np.clip(y - backdrop.feature_top - 2.5 * dy, 0, 1))[..., None] * (1 - floor)
    if backdrop.band > 0:
        stripe = np.clip(3.0 - np.abs(y - backdrop.band - 2.5 * dy - 0.4 * backdrop.slope * (x - 32)), 0, 1)
        feature = np.maximum(feature, stripe[..., None] * (1 - floor))
    wall_colour = _colour(backdrop.wall, 1 + 0.05 * wall_level) * (1.08 - 0.0016 * y[..., None])
    floor_colour = _colour(backdrop.floor, 1 + 0.05 * floor_level) * (0.88 + 0.006 * (y[..., None] - 96))
    scene: np.ndarray = wall_colour + (_colour(backdrop.feature) - wall_colour) * feature
    scene += (floor_colour - scene) * floor
    return scene


def _ground_shadow(shot: Shot) -> np.ndarray:
    """A soft dark spot under the feet, float32 [IMAGE_HEIGHT, IMAGE_WIDTH, 1]."""
    x = (np.arange(IMAGE_WIDTH, dtype=np.float32)[None, :] - 32 - shot.dx) / 15
    y = (np.arange(IMAGE_HEIGHT, dtype=np.float32)[:, None] - 121 - shot.dy) / 4
    return (1 - 0.40 * np.exp(-(x * x + y * y)))[..., None].astype(np.float32)


def _soften(image: np.ndarray, amount: float) -> np.ndarray:
    """Blurs by a 3-tap kernel (amount, 1 - 2 amount, amount) along both axes."""
    out = image * (1 - 2 * amount)
    out[1:] += amount * image[:-1]
    out[:-1] += amount * image[1:]
    out[0] += amount * image[0]
    out[-1] += amount * image[-1]
    blurred: np.ndarray = out * (1 - 2 * amount)
    blurred[:, 1:] += amount * out[:, :-1]
    blurred[:, :-1] += amount * out[:, 1:]
    blurred[:, 0] += amount * out[:, 0]
    blurred[:, -1] += amount * out[:, -1]
    return blurred


def _lamp(camera: WorldCamera) -> np.ndarray:
    """Light of an infrared lamp, float32 [IMAGE_HEIGHT, IMAGE_WIDTH, 1], 1 at its centre."""
    x = np.arange(IMAGE_WIDTH, dtype=np.float32)[None, :] - camera.lamp[0]
    y = np.arange(IMAGE_HEIGHT, dtype=np.float32)[:, None] - camera.lamp[1]
    distance = (x * x + y * y) / IMAGE_HEIGHT**2
    return (1 / (1 + camera.falloff * 4 * distance))[..., None]


def _expose(scene: np.ndarray, camera: WorldCamera, shot: Shot) -> np.ndarray:
    """Converts reflectance to a signal in 0..1: light, colour cast or lamp, black level. With a spectrum, one channel."""
    if camera.spectrum is None:
        signal = scene * _colour(camera.cast)
    else:
        signal = scene[..., :1] * _lamp(camera)
    exposed: np.ndarray = camera.lift + (1 - camera.lift) * camera.gain * shot.gain * signal
    return exposed


def render(person: Pedestrian, camera: WorldCamera, shot: Shot, noise: bool = True) -> np.ndarray:
    """Photographs a person: uint8 [128, 64, 3]; cameras with a spectrum give three equal channels.

    A shot has the same geometry in every camera. `noise=False` leaves out blur and sensor noise.
    """
    lit, covered, box = _foreground(person, shot, camera.spectrum)
    scene = _backdrop(camera.backdrop, shot) * _ground_shadow(shot)
    scene[box] *= 1 - covered
    scene[box] += lit  # one-channel infrared broadcasts over the grey backdrop
    signal = _expose(scene, camera, shot)
    if noise:
        signal = _soften(signal, camera.blur + shot.blur)
        rng = np.random.default_rng([shot.seed, zlib.crc32(camera.name.encode())])
        signal += camera.noise * rng.standard_normal(signal.shape, dtype=np.float32)
    pixels = (np.clip(signal, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.broadcast_to(pixels, (IMAGE_HEIGHT, IMAGE_WIDTH, 3)).copy()
