"""Small pieces of a self-contained HTML page: images inside it as data, every text escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from dive_fast.data.images import decode_image, read_header, read_image_file
from dive_fast.io import atomic_write

# Macros of parts.html: every text is escaped; sections and pages take parts that are HTML already.
_PARTS: Any = (
    Environment(loader=FileSystemLoader(Path(__file__).parent / "page"), autoescape=True)
    .get_template("parts.html")
    .module
)


BarKind = Literal["plain", "baseline", "ours", "oracle"]


@dataclass(frozen=True)
class Cell:
    """One picture of a row; `made` marks a synthetic image by a frame."""

    image: Path | Image.Image
    caption: str
    made: bool = False


@dataclass(frozen=True)
class PictureRow:
    """A row of pictures of one identity; None ends a group, which stays together where a narrow page breaks the row."""

    name: str
    note: str
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class ColumnRow:
    """A row of `picture_table`: one identity, and the pictures of each column."""

    name: str
    note: str
    columns: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Bar:
    """One bar of `bar_chart`. `kind` colours it: plain, baseline (which also draws a line), ours or oracle."""

    name: str
    note: str
    value: float
    text: str
    kind: BarKind = "plain"


def escape(text: object) -> str:
    return html.escape(str(text))


def image_data(image: Path | Image.Image) -> str:
    """A `data:` URL; PNG and JPEG files that lie upright go in as they are, other images as PNG.

    A file that is no image raises `InputError`: a link in an untrusted folder may lead to any file.
    """
    if isinstance(image, Path):
        data = read_image_file(image, str(image))
        decoded, header = decode_image(data, str(image)), read_header(data, str(image))
        if header.format in ("PNG", "JPEG") and header.upright and not header.deep:
            return f"data:image/{header.format.lower()};base64,{base64.b64encode(data).decode()}"
        image = decoded
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def picture_row(person: PictureRow) -> str:
    return str(_PARTS.picture_row(person, image_data))


def picture_table(header: Sequence[tuple[str, str]], rows: Sequence[ColumnRow]) -> str:
    """One row per identity under a header of (title, note) per column; a narrow screen scrolls it under column 1."""
    return str(_PARTS.picture_table(header, rows, image_data))


def bar_chart(bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0, as text and CSS: readable at any width."""
    top = max((bar.value for bar in bars), default=0.0) or 1.0
    line = next((bar.value for bar in bars if bar.kind == "baseline"), None)
    return str(_PARTS.bar_chart(bars, top, line))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], mark: str | None = None) -> str:
    """An HTML table; the row whose first cell is `mark` is highlighted."""
    return str(_PARTS.table(header, rows, mark))


def plot(path: Path, alt: str) -> str:
    return f'<img class="plot" src="{image_data(path)}" alt="{escape(alt)}">'


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def section(title: str, *parts: str) -> str:
    return str(_PARTS.section(title, parts))


def paragraph(text: str, kind: Literal["", "finding", "soft"] = "") -> str:
    """A paragraph; `finding` is large, `soft` small and pale."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def details(summary: str, *parts: str) -> str:
    """Parts folded away under a line that opens them."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def write_page(path: Path, title: str, lead: str, *sections: str) -> Path:
    """Writes the page whole or not at all and returns its path."""
    atomic_write(path, _PARTS.page(title, lead, sections))
    return path
