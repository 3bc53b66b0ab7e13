"""Retrieval as HTML pages: each query with the images that it finds, right and wrong marked by colour, line and sign."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment
from PIL import Image

from dive_fast.data.images import open_image
from dive_fast.reid.pictures.config import Order
from dive_fast.reid.pictures.rank import Hit, Ranking, Retrieval
from dive_fast.report import html

RIGHT, WRONG = "#009e73", "#d55e00"  # Okabe and Ito's green and vermilion, distinct under every colour blindness
THUMB = (96, 192)  # pixels at most; a page's picture is a few KB
_QUALITY = 85
_TEMPLATE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""<style>
.row { padding: 12px 0; border-bottom: 1px solid var(--line) }
.row h3 { margin: 0 0 6px; font-size: 15px } .row h3 small { opacity: .75 }
.row .finds { display: flex; flex-wrap: wrap; gap: 7px }
.row figure { position: relative }
.row figure img { height: 132px; border: 4px solid #6b7280; border-radius: 4px }
.row figure.right img { border: 4px solid {{ right }} } .row figure.wrong img { border: 4px dashed {{ wrong }} }
.row figure b { position: absolute; top: 0; left: 0; width: 22px; font-size: 15px; line-height: 22px; color: #fff;
  border-radius: 4px 0 6px 0 }
.row figure.right b { background: {{ right }} } .row figure.wrong b { background: {{ wrong }} }
.row figcaption { font-variant-numeric: tabular-nums }
nav a { margin-right: 1rem }
</style>
{{ before|safe }}
<nav>
{% for camera, orders in contents.items() %}
  <p>{{ camera }}: {% for order, link in orders.items() %}<a href="{{ link }}">{{ order }}</a>{% endfor %}</p>
{% endfor %}
</nav>
{% for section in sections %}
<div id="{{ section.name }}"><section>
  <h2>Queries of {{ section.camera }}, {{ words[section.order] }}</h2>
  <p><a href="sheets/{{ section.name }}.png">The first of them as one picture</a></p>
  {% for ranking in section.rankings %}
  {% set query = retrieval.query[ranking.row] %}
  <div class="row">
    <h3>{{ query.pid }}<small>{{ summary(ranking) }} \u00b7 {{ query.path.name }}</small></h3>
    <div class="finds">
      <figure><img src="{{ url(query.path) }}" alt="query, {{ query.pid }} {{ query.camera }}">
        <figcaption>query<br>{{ query.camera }}</figcaption></figure>
      {% for hit in shown(ranking) %}
      {% set sample, word = retrieval.gallery[hit.row], "right" if hit.right else "wrong" %}
      {% set place, distance = sample.pid ~ " " ~ sample.camera, "%.3f"|format(hit.distance) %}
      {% set alt = "rank %s, %s, %s, distance %s"|format(hit.rank, word, place, distance) %}
      <figure class="{{ word }}"><img src="{{ url(sample.path) }}" alt="{{ alt }}" title="{{ alt }}">
        <b>{{ "\u2713" if hit.right else "\u2717" }}</b>
        <figcaption>{{ hit.rank }}. {{ distance }}<br>{{ place }}</figcaption></figure>
      {% endfor %}
    </div>
  </div>
  {% endfor %}
</section></div>
{% endfor %}
{{ after|safe }}
{% if names|length > 1 %}
<nav>Page {% for name in names %}
  {% if loop.index0 == number %}<b>{{ loop.index }}</b>{% else %}<a href="{{ name }}">{{ loop.index }}</a>{% endif %}
{% endfor %}</nav>
{% endif %}
""")
_ORDER_WORDS: dict[Order, str] = {"random": "at random", "worst": "lowest AP first", "best": "highest AP first"}


@dataclass(frozen=True)
class Section:
    """Rankings of one camera in one order; `name` is its anchor and the stem of its PNG."""

    camera: str
    order: Order
    name: str
    rankings: tuple[Ranking, ...]


def thumbnail(path: Path) -> Image.Image:
    """Returns the image in RGB, within `THUMB`."""
    image = open_image(path)
    image.thumbnail(THUMB, Image.Resampling.LANCZOS)
    return image


def _thumbnail_url(path: Path) -> str:
    buffer = io.BytesIO()
    thumbnail(path).save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def split_pages(sections: Sequence[Section], most: int) -> list[list[Section]]:
    """Splits sections into pages of at most `most` queries; a longer section continues on the next page."""
    pages: list[list[Section]] = [[]]
    room = most
    for section in sections:
        left = section.rankings
        while left:
            if not room:
                pages.append([])
                room = most
            part, left = left[:room], left[room:]
            pages[-1].append(replace(section, rankings=part))
            room -= len(part)
    return pages


def write_pages(
    out: Path,
    title: str,
    lead: str,
    before: str,
    after: str,
    retrieval: Retrieval,
    pages: Sequence[Sequence[Section]],
) -> None:
    """Writes "index.html", which also has the HTML `before` and `after`, last, and before it "page-2.html", ..."""
    names = ["index.html", *(f"page-{number + 1}.html" for number in range(1, len(pages)))]
    contents: dict[str, dict[str, str]] = {}  # links to each camera and order
    for name, page in zip(names, pages, strict=True):
        for section in page:
            contents.setdefault(section.camera, {}).setdefault(section.order, f"{name}#{section.name}")
    url = lru_cache(maxsize=None)(_thumbnail_url)
    for number in reversed(range(len(pages))):
        body = _TEMPLATE.render(
            right=RIGHT,
            wrong=WRONG,
            before="" if number else before,
            after="" if number else after,
            contents=contents,
            sections=pages[number],
            names=names,
            number=number,
            retrieval=retrieval,
            words=_ORDER_WORDS,
            url=url,
            shown=shown,
            summary=summary,
        )
        html.write_page(out / names[number], title, lead, body)


def shown(ranking: Ranking) -> Iterator[Hit]:
    """Yields the nearest images, and the first right one if it comes after them."""
    yield from ranking.top
    if ranking.first.rank > len(ranking.top):
        yield ranking.first


def summary(ranking: Ranking) -> str:
    """ "AP 34.5 %, 4 right images, first at rank 3"."""
    images = "image" if ranking.matches == 1 else "images"
    return f"AP {100 * ranking.ap:.1f} %, {ranking.matches:,} right {images}, first at rank {ranking.first.rank:,}"
