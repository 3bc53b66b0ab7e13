"""Retrieval as HTML pages: each query with what it finds, right and wrong told apart by colour, line and mark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dive_fast.data.images import open_image
from dive_fast.reid.pictures.rank import Hit, Order, Ranking, Retrieval
from dive_fast.report import html
from dive_fast.types import Sample

RIGHT, WRONG = "#009e73", "#d55e00"  # Okabe and Ito's green and vermilion: told apart by every kind of colour vision
MARKS = {True: "\u2713", False: "\u2717"}
WORDS = {True: "right", False: "wrong"}
THUMB = (96, 192)  # pixels at most; a page's picture is a few KB
_QUALITY = 85
ORDER_WORDS: dict[Order, str] = {"random": "at random", "worst": "lowest AP first", "best": "highest AP first"}
_STYLE = f"""<style>
.row {{ padding: 12px 0; border-bottom: 1px solid var(--line) }}
.row h3 {{ margin: 0 0 6px; font-size: 15px }} .row h3 small {{ font-weight: 400; opacity: .75; margin-left: .6rem }}
.row .finds {{ display: flex; flex-wrap: wrap; gap: 7px }}
.row figure {{ position: relative }}
.row figure img {{ height: 132px; border: 4px solid #6b7280; border-radius: 4px }}
.row figure.right img {{ border: 4px solid {RIGHT} }} .row figure.wrong img {{ border: 4px dashed {WRONG} }}
.row figure b {{ position: absolute; top: 0; left: 0; width: 22px; font-size: 15px; line-height: 22px; color: #fff;
  border-radius: 4px 0 6px 0 }}
.row figure.right b {{ background: {RIGHT} }} .row figure.wrong b {{ background: {WRONG} }}
.row figcaption {{ height: auto; max-width: 92px; font-variant-numeric: tabular-nums }}
nav a {{ margin-right: 1rem }}
</style>"""


@dataclass(frozen=True)
class Section:
    """Rankings of one camera in one order; `name` is its anchor and the stem of its PNG."""

    camera: str
    order: Order
    name: str
    rankings: tuple[Ranking, ...]


class Thumbs:
    """Small pictures of samples as `data:` URLs, each made once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def url(self, path: Path) -> str:
        if path not in self._known:
            buffer = io.BytesIO()
            thumbnail(path).save(buffer, "JPEG", quality=_QUALITY)
            self._known[path] = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return self._known[path]


def thumbnail(path: Path) -> Image.Image:
    """The image in RGB, within `THUMB`."""
    image = open_image(path)
    image.thumbnail(THUMB, Image.Resampling.LANCZOS)
    return image


def split_pages(sections: Sequence[Section], most: int) -> list[list[Section]]:
    """Sections dealt to pages of at most `most` queries; one that is longer goes on on the next page."""
    pages: list[list[Section]] = [[]]
    room = most
    for section in sections:
        left = section.rankings
        while left:
            if not room:
                pages.append([])
                room = most
            part, left = left[:room], left[room:]
            pages[-1].append(Section(section.camera, section.order, section.name, part))
            room -= len(part)
    return pages


def page_name(number: int) -> str:
    """ "index.html" for page 0, then "page-2.html", ..."""
    return "index.html" if number == 0 else f"page-{number + 1}.html"


def write_pages(
    out: Path,
    title: str,
    lead: str,
    before: Sequence[str],
    after: Sequence[str],
    retrieval: Retrieval,
    pages: Sequence[Sequence[Section]],
) -> list[str]:
    """Writes every page, the first last, and returns their names; `before` and `after` frame the first one's sections."""
    thumbs, contents = Thumbs(), _contents(pages)
    for number in reversed(range(len(pages))):
        sections = [_section(retrieval, section, thumbs) for section in pages[number]]
        if number == 0:
            parts = [_STYLE, *before, contents, *sections, *after]
        else:
            parts = [_STYLE, contents, *sections]
        html.write_page(out / page_name(number), title, lead, *parts, _turn(number, len(pages)))
    return [page_name(number) for number in range(len(pages))]


def _contents(pages: Sequence[Sequence[Section]]) -> str:
    """Links to every camera and order: the way to see one camera only."""
    places: dict[str, dict[str, str]] = {}
    for number, page in enumerate(pages):
        for section in page:
            link = f'<a href="{page_name(number)}#{html.escape(section.name)}">{html.escape(section.order)}</a>'
            places.setdefault(section.camera, {}).setdefault(section.order, link)
    lines = [f"<p>{html.escape(camera)}: {''.join(links.values())}</p>" for camera, links in places.items()]
    return f"<nav>{''.join(lines)}</nav>"


def _turn(number: int, count: int) -> str:
    if count == 1:
        return ""
    links = [
        f"<b>{i + 1}</b> " if i == number else f'<a href="{page_name(i)}">{i + 1}</a> '
        for i in range(count)
    ]  # fmt: skip
    return f"<nav>Page {''.join(links)}</nav>"


def _section(retrieval: Retrieval, section: Section, thumbs: Thumbs) -> str:
    title = f"Queries of {section.camera}, {ORDER_WORDS[section.order]}"
    rows = "".join(_row(retrieval, ranking, thumbs) for ranking in section.rankings)
    sheet = f'<p><a href="sheets/{html.escape(section.name)}.png">The first of them as one picture</a></p>'
    return f'<div id="{html.escape(section.name)}">{html.section(title, sheet, rows)}</div>'


def _row(retrieval: Retrieval, ranking: Ranking, thumbs: Thumbs) -> str:
    query = retrieval.query[ranking.row]
    head = (
        f"{html.escape(query.pid)}<small>{html.escape(summary(ranking))} \u00b7 {html.escape(query.path.name)}</small>"
    )
    figures = [
        f'<figure><img src="{thumbs.url(query.path)}" alt="query, {html.escape(_place(query))}">'
        f"<figcaption>query<br>{html.escape(query.camera)}</figcaption></figure>",
        *(_figure(retrieval, hit, thumbs) for hit in shown(ranking)),
    ]
    return f'<div class="row"><h3>{head}</h3><div class="finds">{"".join(figures)}</div></div>'


def _figure(retrieval: Retrieval, hit: Hit, thumbs: Thumbs) -> str:
    sample, word = retrieval.gallery[hit.row], WORDS[hit.right]
    alt = html.escape(f"rank {hit.rank}, {word}, {_place(sample)}, distance {hit.distance:.3f}")
    caption = f"{hit.rank}. {hit.distance:.3f}<br>{html.escape(_place(sample))}"
    return (
        f'<figure class="{word}"><img src="{thumbs.url(sample.path)}" alt="{alt}" title="{alt}">'
        f"<b>{MARKS[hit.right]}</b><figcaption>{caption}</figcaption></figure>"
    )


def shown(ranking: Ranking) -> Iterator[Hit]:
    """The nearest images, and the first right one if it comes after them."""
    yield from ranking.top
    if ranking.first.rank > len(ranking.top):
        yield ranking.first


def summary(ranking: Ranking) -> str:
    """ "AP 34.5 %, 4 right images, first at rank 3"."""
    images = "image" if ranking.matches == 1 else "images"
    return f"AP {100 * ranking.ap:.1f} %, {ranking.matches:,} right {images}, first at rank {ranking.first.rank:,}"


def _place(sample: Sample) -> str:
    return f"{sample.pid} {sample.camera}"
