"""Contact sheets of identities in several cameras."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dive_fast.train.contact_sheet import contact_sheet
from dive_fast.world.cameras import SYSU_CAMERAS, WorldCamera
from dive_fast.world.pedestrians import world_pedestrian, world_shot
from dive_fast.world.render import render

_MARGIN = 40


def identity_sheet(seed: int, pids: Sequence[int], zoom: int = 2) -> Image.Image:
    """Draws one row per identity and one column per camera; a row shows one shot, and rows show several poses."""

    def picture(pid: int, row: int, camera: WorldCamera) -> np.ndarray:
        pixels = render(world_pedestrian(seed, pid), camera, world_shot(seed, pid, "sheet", row))
        return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)

    cameras = SYSU_CAMERAS.values()
    rows = [[picture(pid, row, camera) for camera in cameras] for row, pid in enumerate(pids)]
    columns = [f"{camera.name} {'infrared' if camera.spectrum else 'RGB'}" for camera in cameras]
    return contact_sheet(rows, [f"{pid:04d}" for pid in pids], columns, _MARGIN)
