"""Small pieces of a self-contained HTML page: images inside it as data, every text escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dive_fast.data.images import open_image
from dive_fast.io import atomic_write

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line) }
p.lead { font-size: 1.1rem } code, pre { font: 13px/1.5 ui-monospace, monospace; background: var(--soft) }
pre { padding: .8rem; overflow-x: auto; border-radius: 6px }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line) }
td { text-align: right; font-variant-numeric: tabular-nums } th, td:first-child { text-align: left }
tr.mark td { font-weight: 600; background: var(--soft) }
.person { display: flex; flex-wrap: wrap; gap: 6px; align-items: flex-end; padding: 10px 0;
  border-bottom: 1px solid var(--line) }
.person .name { width: 6.5rem; font-weight: 600; align-self: center }
.person .name small { font-weight: 400; display: block }
figure { margin: 0; text-align: center } figure img { height: 148px; border-radius: 4px; display: block }
figcaption { font-size: 11px; line-height: 1.25; height: 2.5em; max-width: 84px; opacity: .8 }
figure.made img { outline: 2px solid #2a8f5c }
figure.gap { width: 8px } img.plot { max-width: 100%; background: #fff; border-radius: 6px }
"""


@dataclass(frozen=True)
class Cell:
    """One picture of a row; `made` marks a synthetic image by a frame."""

    image: Path | Image.Image
    caption: str
    made: bool = False


@dataclass(frozen=True)
class Person:
    """A row of pictures of one identity; None leaves a gap."""

    name: str
    note: str
    cells: Sequence[Cell | None]


def escape(text: object) -> str:
    return html.escape(str(text))


def image_data(image: Path | Image.Image) -> str:
    """A `data:` URL; PNG and JPEG files go in as they are, anything else as PNG."""
    if isinstance(image, Path):
        kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(image.suffix.lower())
        if kind is not None:
            return f"data:image/{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
        image = open_image(image)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def person_row(person: Person) -> str:
    parts = []
    for cell in person.cells:
        if cell is None:
            parts.append('<figure class="gap"></figure>')
            continue
        made = ' class="made"' if cell.made else ""
        picture = f'<img src="{image_data(cell.image)}" alt="{escape(person.name)}, {escape(cell.caption)}">'
        parts.append(f"<figure{made}>{picture}<figcaption>{escape(cell.caption)}</figcaption></figure>")
    name = f'<div class="name">{escape(person.name)}<small>{escape(person.note)}</small></div>'
    return f'<div class="person">{name}{"".join(parts)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]], mark: str | None = None) -> str:
    """An HTML table; the row whose first cell is `mark` stands out."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for row in rows:
        kind = ' class="mark"' if mark is not None and row[0] == mark else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def plot(path: Path, alt: str) -> str:
    return f'<img class="plot" src="{image_data(path)}" alt="{escape(alt)}">'


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def write_page(path: Path, title: str, lead: str, *sections: str) -> Path:
    """Writes the page whole or not at all and returns its path."""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><body><h1>{escape(title)}</h1>"
        f"{paragraph(lead, 'lead')}{''.join(sections)}</body></html>\n"
    )
    atomic_write(path, page)
    return path
