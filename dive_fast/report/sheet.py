"""A few pairs of a dataset side by side, identity by identity, on one page that contains its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from dive_fast.data.images import image_problem
from dive_fast.report.config import ReportConfig
from dive_fast.report.html import Cell, PictureRow, paragraph, picture_row, section, table, write_page
from dive_fast.synth.manifest import read_manifest
from dive_fast.types import InputError, PairRecord
from dive_fast.words import count

_PROBLEMS = 50


def write_sheet(
    dataset: Path, out: Path, config: ReportConfig = ReportConfig(), problems: Sequence[str] | None = None
) -> Path:
    """Writes a page with the first pairs of the first identities, and the `problems` that verify found, if it ran.

    A dataset without finished pairs raises `InputError`.
    """
    shown: dict[str, list[PairRecord]] = {}
    pids: set[str] = set()
    total = 0
    for record in read_manifest(dataset):
        total += 1
        pids.add(record.spec.pid)
        if record.spec.pid in shown or len(shown) < config.people:
            kept = shown.setdefault(record.spec.pid, [])
            if len(kept) < config.pairs:
                kept.append(record)
    if not total:
        raise InputError(f"dataset {dataset} has no finished pair yet; run synth again")
    rows = [picture_row(_person(dataset, pid, records)) for pid, records in shown.items()]
    lead = f"{count(total, 'pair')} of {count(len(pids), 'identity')}; green frames mark generated images."
    return write_page(out, f"Pairs in {dataset.name}", lead, section("Pairs", *rows), _health(problems))


def _health(problems: Sequence[str] | None) -> str:
    if problems is None:
        return ""
    if not problems:
        return section("Health", paragraph("Every record has its file, and every file its record."))
    listed = table(["problem"], [[problem] for problem in problems[:_PROBLEMS]])
    return section("Health", paragraph(f"{count(len(problems), 'problem')}:"), listed)


def _person(dataset: Path, pid: str, records: Iterable[PairRecord]) -> PictureRow:
    cells: list[Cell | None] = []
    for record in records:
        photo = record.spec.photo is not None
        cells += [
            _cell(dataset / record.files["rgb"], f"{record.spec.rgb} {'photo' if photo else 'made'}", not photo),
            _cell(dataset / record.files["ir"], f"{record.spec.ir} made", True),
            None,
        ]
    return PictureRow(pid, "", cells)


def _cell(path: Path, caption: str, made: bool) -> Cell:
    if image_problem(path) is None:
        return Cell(path, caption, made)
    return Cell(Image.new("L", (1, 2), 128), f"{caption}, {'cannot be read' if path.exists() else 'missing'}", made)
