"""Contact sheets: images in a labelled grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import numpy as np

_HEADER, _GAP = 16, 2
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], names: Sequence[str], columns: Sequence[str], margin: int
) -> Image.Image:
    """Draws equal images uint8 [H, W, 3], with `names` left of the rows in a margin of that width and `columns` above."""
    height, width = rows[0][0].shape[:2]
    size = (margin + len(columns) * (width + _GAP), _HEADER + len(rows) * (height + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, column in enumerate(columns):
        pen.text((margin + i * (width + _GAP) + 2, 2), column, fill=_INK)
    for k, (name, images) in enumerate(zip(names, rows, strict=True)):
        top = _HEADER + k * (height + _GAP)
        pen.text((2, top + height // 2), name, fill=_INK)
        for i, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (margin + i * (width + _GAP), top))
    return sheet
