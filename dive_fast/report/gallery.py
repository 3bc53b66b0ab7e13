"""`dive-fast report`: the pairs of a synthesized dataset side by side, identity by identity."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dive_fast.report.html import Cell, Person, paragraph, person_row, section, table, write_page
from dive_fast.synth.manifest import read_manifest, verify
from dive_fast.types import InputError, PairRecord


def write_gallery(dataset: Path, out: Path, people: int = 24, pairs: int = 4) -> Path:
    """Writes a page with the first `pairs` pairs of the first `people` identities, and what `verify` finds.

    A dataset without finished pairs raises `InputError`.
    """
    by_pid: dict[str, list[PairRecord]] = {}
    total = 0
    for record in read_manifest(dataset):
        total += 1
        by_pid.setdefault(record.spec.pid, []).append(record)
    if not total:
        raise InputError(f"dataset {dataset} has no finished pair yet; run synth again")
    rows = [person_row(_person(dataset, pid, records[:pairs])) for pid, records in list(by_pid.items())[:people]]
    problems = verify(dataset)
    health = "Every record has its file, and every file its record." if not problems else f"{len(problems)} problems:"
    return write_page(
        out,
        f"Pairs in {dataset.name}",
        f"{total:,} pairs of {len(by_pid):,} identities; green frames mark generated images.",
        section("Pairs", *rows),
        section("Health", paragraph(health), table(["problem"], [[p] for p in problems[:50]]) if problems else ""),
    )


def _person(dataset: Path, pid: str, records: Iterable[PairRecord]) -> Person:
    cells: list[Cell | None] = []
    for record in records:
        photo = record.spec.photo is not None
        cells += [
            Cell(dataset / record.files["rgb"], f"{record.spec.rgb} {'photo' if photo else 'made'}", made=not photo),
            Cell(dataset / record.files["ir"], f"{record.spec.ir} made", made=True),
            None,
        ]
    return Person(pid, "", cells)
