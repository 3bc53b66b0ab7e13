"""The filter's report: counts, and pictures from just below and just above each threshold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dive_fast.data.images import open_image
from dive_fast.json_files import read_jsonl
from dive_fast.quality.filter import KINDS, Example, Tally
from dive_fast.quality.rules import Rule
from dive_fast.quality.sidecar import nearest_path
from dive_fast.report.html import Cell, PictureRow, paragraph, picture_row, section, table, write_page
from dive_fast.synth.records import is_inside
from dive_fast.types import InputError, Modality
from dive_fast.words import count

IDENTITIES = 30  # rows of the table, most dropped first
HEIGHT = 296  # pixels of a picture: twice what the page shows


def write_filter_page(dataset: Path, out: Path, tally: Tally, metadata: dict[str, Any]) -> Path:
    """Writes the page; `metadata` is the content of scores.json, which locates training images."""
    roots = {str(entry["name"]): Path(entry["root"]) for entry in metadata["sets"]["train"]}
    return write_page(
        out,
        f"What the filter dropped from {dataset.name}",
        f"{tally.dropped:,} of {count(tally.pairs, 'pair')} dropped, none deleted; green frames mark generated images.",
        section("By threshold", table(["kept if", "pairs dropped"], [[r, tally.by_rule[str(r)]] for r in tally.rules])),
        *(
            section(f"{rule.score} of {side} images: kept if {rule}", *_rows(dataset, tally, rule, side, roots))
            for rule in tally.rules
            for side in rule.sides()
            if any(tally.examples(rule, side, kind) for kind in KINDS)
        ),
        section("By camera", _counts("camera", tally.pairs_by_camera, tally.dropped_by_camera, None)),
        section("By identity", *_identities(tally)),
    )


def _rows(dataset: Path, tally: Tally, rule: Rule, side: Modality, roots: dict[str, Path]) -> Iterator[str]:
    for kind in KINDS:
        examples = tally.examples(rule, side, kind)
        if examples:
            cells = [cell for example in examples for cell in _cells(dataset, example, roots)]
            span = dict.fromkeys(f"{example.value:.4g}" for example in (examples[0], examples[-1]))
            yield picture_row(PictureRow(kind, " to ".join(span), cells))


def _cells(dataset: Path, example: Example, roots: dict[str, Path]) -> Iterator[Cell | None]:
    pair, side = example.scored.pair, example.side
    other: Modality = "rgb" if side == "ir" else "ir"
    caption = f"{pair.pid} {pair.cameras[side]} {example.value:.4g}"
    yield _picture(dataset / pair.files[side], caption, made=True)
    if example.rule.score == "memorisation":
        yield _training(dataset, example, roots)
    else:
        photo = other not in pair.made
        yield _picture(dataset / pair.files[other], "its photo" if photo else "its other side", made=not photo)
    yield None


def _training(dataset: Path, example: Example, roots: dict[str, Path]) -> Cell:
    """The training image that is most like the example."""
    for row in read_jsonl(nearest_path(dataset, example.scored.shard), "nearest training images"):
        if isinstance(row, dict) and row.get("pair_id") == example.scored.pair.pair_id:
            name, _, file = str(row.get(example.side)).partition("/")
            if name in roots and is_inside(file):
                return _picture(roots[name] / file, f"nearest: {name}", made=False)
    return Cell(Image.new("RGB", (HEIGHT // 2, HEIGHT), "grey"), "nearest: not found")


def _picture(path: Path, caption: str, made: bool) -> Cell:
    """The image at the page's size; a grey one with a caption for an unreadable file."""
    try:
        image = open_image(path)
    except InputError:
        return Cell(Image.new("RGB", (HEIGHT // 2, HEIGHT), "grey"), f"{caption} (cannot be read)", made)
    image.thumbnail((HEIGHT, HEIGHT))
    return Cell(image, caption, made)


def _counts(title: str, total: Any, dropped: Any, most: int | None) -> str:
    names = sorted(total, key=lambda name: (-dropped[name] / total[name], name))[:most]
    rows = [[name, f"{total[name]:,}", f"{dropped[name]:,}", f"{dropped[name] / total[name]:.1%}"] for name in names]
    return table([title, "pairs", "dropped", "share"], rows)


def _identities(tally: Tally) -> Iterator[str]:
    lost = {side: pids for side, pids in tally.lost().items() if pids}
    for side, pids in lost.items():
        yield paragraph(f"{count(len(pids), 'identity')} without a {side} image: {', '.join(pids[:20])}")
    more = len(tally.pairs_of) - IDENTITIES
    yield (
        paragraph(f"The {IDENTITIES} that lost the largest share; {more:,} more are in filter.json.")
        if more > 0
        else ""
    )
    yield _counts("identity", tally.pairs_of, tally.dropped_of, IDENTITIES)
