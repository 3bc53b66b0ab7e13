"""One walk over a dataset that writes a gallery's data: records, columns of numbers, packs of thumbnails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from dive_fast.report.chunks import BLOCK, RECORDS, Columns, record_chunk, write_chunk
from dive_fast.report.rows import DatasetRows, Row
from dive_fast.report.tally import Tally
from dive_fast.report.throughput import Event
from dive_fast.report.thumbs import PACK, Pack, PackJob, pack_job, pack_name

_NUMBERS = {"pid": "I", "rgb": "H", "ir": "H", "status": "B", "reasons": "I"}


class Walk:
    """Rows leave as jobs for thumbnails and return as packs, in order; only counts stay in memory."""

    def __init__(self, rows: DatasetRows, out: Path) -> None:
        self.tally = Tally()
        self.events: list[Event] = []
        self.packs_made = 0
        self.flaw_counts = np.zeros(16, np.int64)  # pairs by their bits of thumbs.MISSING and DAMAGED
        self.numbers = Columns(out / "data", _NUMBERS, BLOCK)
        self._rows, self._out = rows, out
        self._flaws = Columns(out / "data", {"flaws": "B"}, BLOCK)
        self._packs = Columns(out / "data", {"packs": "I"}, BLOCK // PACK)
        self._pack_names: set[str] = set()
        self._chunks = 0

    def jobs(self) -> Iterator[PackJob]:
        """The packs to make, in order; writes records and columns on the way."""
        rows = chain.from_iterable(self._shards())
        for number, pack in enumerate(_batches(self._chunked(rows), PACK)):
            yield pack_job(self._rows.dataset, self._out / "thumbs", number, [row.record for row in pack])
        self.numbers.finish()

    def add(self, pack: Pack) -> None:
        """Records the next pack."""
        self._packs.append({"packs": pack.digest})
        for flaws in pack.flaws:
            self._flaws.append({"flaws": flaws})
            self.flaw_counts[flaws] += 1
        self._pack_names.add(pack_name(pack.number, pack.digest))
        self.packs_made += pack.made

    @property
    def packs(self) -> int:
        return len(self._pack_names)

    def images_with(self, bits: tuple[int, ...]) -> int:
        """The number of images with any of some flaws."""
        return int(sum(self.flaw_counts[flaws] for bit in bits for flaws in range(16) if flaws & bit))

    def finish(self) -> None:
        """Writes the last blocks."""
        self._flaws.finish()
        self._packs.finish()

    def remove_others(self, data: set[str]) -> None:
        """Removes thumbnails and data of an earlier run that are neither this walk's nor in `data`."""
        names = chain(data, self.numbers.names(), self._flaws.names(), self._packs.names())
        mine = {f"{name}.js" for name in names} | {f"{record_chunk(number)}.js" for number in range(self._chunks)}
        _remove_others(self._out / "thumbs", self._pack_names)
        _remove_others(self._out / "data", mine)

    def _shards(self) -> Iterator[list[Row]]:
        made = len(self._rows.plan.sides)
        for shard in self._rows:
            self.events.append(Event(shard.written, made * len(shard.rows)))
            yield shard.rows

    def _chunked(self, rows: Iterator[Row]) -> Iterator[Row]:
        for chunk in _batches(rows, RECORDS):
            for row in chunk:
                numbers = self.tally.add(row)
                scores = {self.tally.scores[key].column: value for key, value in row.scores.items()}
                self.numbers.append(numbers, scores)
            write_chunk(self._out / "data", record_chunk(self._chunks), [_record(row) for row in chunk])
            self._chunks += 1
            yield from chunk


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while batch := list(islice(rows, size)):
        yield batch


def _record(row: Row) -> dict[str, Any]:
    """The data of a click on a pair. The seed is text: seeds have 63 bits, a page's numbers 53."""
    return {
        **vars(row.record),
        "spec": {**vars(row.record.spec), "seed": str(row.record.spec.seed)},
        "scores": [[*key, value] for key, value in row.scores.items()],
        "reasons": row.reasons,
    }


def _remove_others(folder: Path, names: set[str]) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in names:
            path.unlink()
