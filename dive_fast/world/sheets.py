"""Contact sheets: the same shots of some identities through several cameras, to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH, SYSU_CAMERAS, WorldCamera
from dive_fast.world.persons import world_person, world_shot
from dive_fast.world.render import render

_HEADER, _MARGIN, _GAP = 16, 40, 2
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def identity_sheet(
    seed: int,
    pids: Sequence[int],
    cameras: Sequence[WorldCamera] = tuple(SYSU_CAMERAS.values()),
    zoom: int = 2,
    noise: bool = True,
) -> Image.Image:
    """One row per identity, one column per camera; a row shows one shot, so RGB and infrared can be compared.

    Rows take their shots from consecutive indices, so that a sheet shows several poses.
    """
    width, height = IMAGE_WIDTH * zoom, IMAGE_HEIGHT * zoom
    size = (_MARGIN + len(cameras) * (width + _GAP), _HEADER + len(pids) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, camera in enumerate(cameras):
        pen.text((_MARGIN + column * (width + _GAP) + 2, 2), f"{camera.name} {camera.modality}", fill=_INK)
    for row, pid in enumerate(pids):
        y = _HEADER + row * (height + _GAP)
        pen.text((2, y + height // 2), f"{pid:04d}", fill=_INK)
        person, shot = world_person(seed, pid), world_shot(seed, pid, "sheet", row)
        for column, camera in enumerate(cameras):
            picture = Image.fromarray(render(person, camera, shot, noise=noise)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (_MARGIN + column * (width + _GAP), y))
    return sheet
