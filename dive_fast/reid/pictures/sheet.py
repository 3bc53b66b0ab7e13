"""Retrieval as one PNG: a row per query, right and wrong marked by colour, line and sign."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dive_fast.io import atomic_encode
from dive_fast.reid.pictures.page import RIGHT, THUMB, WRONG, Section, shown, summary, thumbnail
from dive_fast.reid.pictures.rank import Hit, Retrieval
from dive_fast.types import Sample

_CELL = (THUMB[0] + 12, THUMB[1] + 12)  # a picture and its frame
_HEAD, _FOOT, _GAP, _FRAME, _BADGE, _DASH = 24, 34, 8, 5, 22, 9
_INK, _MUTED, _PAPER, _QUERY = "#22272e", "#6b7280", "white", "#6b7280"


def write_sheet(path: Path, retrieval: Retrieval, section: Section, most: int = 6) -> None:
    """Draws the first `most` queries of the section; a row may end in the first right image after the top."""
    rankings = section.rankings[:most]
    columns = 1 + max(len(list(shown(ranking))) for ranking in rankings)
    height = _HEAD + _CELL[1] + _FOOT + _GAP
    width = columns * (_CELL[0] + _GAP) + _GAP
    sheet = Image.new("RGB", (width, len(rankings) * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, ranking in enumerate(rankings):
        top = _GAP + number * height
        query = retrieval.query[ranking.row]
        pen.text((_GAP, top), f"{query.pid}: {summary(ranking)}", _INK, ImageFont.load_default(15))
        _draw(sheet, (_GAP, top + _HEAD), query, None, "query")
        for column, hit in enumerate(shown(ranking), start=1):
            left = _GAP + column * (_CELL[0] + _GAP)
            sample = retrieval.gallery[hit.row]
            _draw(sheet, (left, top + _HEAD), sample, hit, f"{hit.rank}. {hit.distance:.3f}")
    atomic_encode(path, lambda stream: sheet.save(stream, "PNG"))


def _draw(sheet: Image.Image, corner: tuple[int, int], sample: Sample, hit: Hit | None, caption: str) -> None:
    left, top = corner
    pen = ImageDraw.Draw(sheet)
    inner = (_CELL[0] - 2 * _FRAME, _CELL[1] - 2 * _FRAME)
    picture = ImageOps.contain(thumbnail(sample.path), inner, Image.Resampling.LANCZOS)
    sheet.paste(picture, (left + (_CELL[0] - picture.width) // 2, top + (_CELL[1] - picture.height) // 2))
    box = (left, top, left + _CELL[0] - 1, top + _CELL[1] - 1)
    if hit is None or hit.right:
        pen.rectangle(box, outline=_QUERY if hit is None else RIGHT, width=_FRAME)
    else:
        _dashed(pen, box)
    if hit is not None:
        _badge(pen, box, hit.right)
    pen.text((left, box[3] + 3), caption, _INK, ImageFont.load_default(13))
    pen.text((left, box[3] + 18), f"{sample.pid} {sample.camera}", _MUTED, ImageFont.load_default(12))


def _dashed(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    for x in range(left, right, 2 * _DASH):
        for y in (top, bottom - _FRAME + 1):
            pen.rectangle((x, y, min(x + _DASH, right), y + _FRAME - 1), WRONG)
    for y in range(top, bottom, 2 * _DASH):
        for x in (left, right - _FRAME + 1):
            pen.rectangle((x, y, x + _FRAME - 1, min(y + _DASH, bottom)), WRONG)


def _badge(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], right: bool) -> None:
    """Draws a tick or a cross as lines, which needs no font."""
    x, y, s = box[0], box[1], _BADGE
    pen.rectangle((x, y, x + s, y + s), RIGHT if right else WRONG)
    if right:
        pen.line([(x + 5, y + 12), (x + 9, y + 16), (x + 17, y + 6)], _PAPER, 3)
    else:
        pen.line([(x + 6, y + 6), (x + 16, y + 16)], _PAPER, 3)
        pen.line([(x + 6, y + 16), (x + 16, y + 6)], _PAPER, 3)
