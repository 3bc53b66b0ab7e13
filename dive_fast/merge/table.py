"""A dataset's manifest as one Parquet table, for questions that a data frame answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import atomic_path, read_jsonl
from dive_fast.merge.inputs import Progress
from dive_fast.synth.manifest import DROPPED, read_manifest
from dive_fast.types import MODALITIES, DiveError, InputError, PairRecord

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 16_384  # rows; what is held in memory at once


def write_parquet(dataset: Path, file: Path, progress: Progress = lambda _: None) -> int:
    """Writes one row a finished pair, dropped ones too, and gives their number; `progress` is told of each row group.

    Columns: the pair (pair_id, pid, index, rgb_camera, ir_camera, seed, photo), its files (rgb_file, ir_file, rgb_sha256,
    ir_sha256), engine_fingerprint, status, dropped, drop_reasons, and float64 scores: score_NAME of the records,
    score_rgb_NAME and score_ir_NAME of scores/. Raises `InputError` when `file` exists or a sidecar does not fit the
    manifest, and `DiveError` without pyarrow.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DiveError("a Parquet table needs pyarrow; pip install 'dive-fast[parquet]'") from error
    if file.exists():
        raise InputError(f"{file} exists and is not overwritten; choose another file")
    scores = _score_names(dataset)
    schema = _schema(scores)
    rows, total = _rows(dataset, scores), 0
    with atomic_path(file) as temporary, pyarrow.parquet.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(rows, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            total += len(group)
            progress(len(group))
    return total


@dataclass(frozen=True)
class _Scores:
    """The names of scores, in order: those of records, and those of a side in scores/."""

    record: tuple[str, ...]
    sides: tuple[tuple[str, str], ...]


class _Sidecar:
    """Lines about pairs in plan order, walked beside the manifest: each pair's line, if it has one."""

    def __init__(self, rows: Iterator[dict[str, Any]], what: str) -> None:
        self._rows, self._what = rows, what
        self._next = next(rows, None)

    def take(self, pair_id: str) -> dict[str, Any] | None:
        row = self._next
        if row is None or row["pair_id"] != pair_id:
            return None
        self._next = next(self._rows, None)
        return row

    def finish(self) -> None:
        """A line that is still waiting is about a pair that the manifest does not have there."""
        if self._next is not None:
            raise InputError(
                f"{self._what} speaks of pair {self._next['pair_id']}, which the manifest does not have in that place; make "
                "the file anew"
            )


def _rows(dataset: Path, names: _Scores) -> Iterator[dict[str, Any]]:
    scores, drops = (
        _Sidecar(_score_rows(dataset), f"{dataset}/scores"),
        _Sidecar(_drop_rows(dataset), f"{dataset}/{DROPPED}"),
    )
    for record in read_manifest(dataset):
        pair_id = record.spec.pair_id
        yield _row(record, names, scores.take(pair_id) or {}, drops.take(pair_id))
    scores.finish()
    drops.finish()


def _row(record: PairRecord, names: _Scores, scores: dict[str, Any], drop: dict[str, Any] | None) -> dict[str, Any]:
    spec = record.spec
    return {
        "pair_id": spec.pair_id,
        "pid": spec.pid,
        "index": spec.index,
        "rgb_camera": spec.rgb,
        "ir_camera": spec.ir,
        "seed": spec.seed,
        "photo": spec.photo,
        **{f"{side}_file": record.files[side] for side in MODALITIES},
        **{f"{side}_sha256": record.sha256[side] for side in MODALITIES},
        "engine_fingerprint": record.engine_fingerprint,
        "status": record.status,
        "dropped": drop is not None,
        "drop_reasons": [] if drop is None else [str(reason) for reason in drop.get("reasons", [])],
        **{f"score_{name}": record.scores.get(name) for name in names.record},
        **{f"score_{side}_{name}": scores.get(side, {}).get(name) for side, name in names.sides},
    }


def _schema(scores: _Scores) -> pyarrow.Schema:
    import pyarrow

    text, flag, whole, real = pyarrow.string(), pyarrow.bool_(), pyarrow.int64(), pyarrow.float64()
    types = {
        **dict.fromkeys(("pair_id", "pid"), text),
        "index": whole,
        **dict.fromkeys(("rgb_camera", "ir_camera"), text),
        "seed": whole,  # below 2^63
        **dict.fromkeys(
            ("photo", "rgb_file", "ir_file", "rgb_sha256", "ir_sha256", "engine_fingerprint", "status"), text
        ),
        "dropped": flag,
        "drop_reasons": pyarrow.list_(text),
        **dict.fromkeys((f"score_{name}" for name in scores.record), real),
        **dict.fromkeys((f"score_{side}_{name}" for side, name in scores.sides), real),
    }
    return pyarrow.schema(list(types.items()))


def _score_names(dataset: Path) -> _Scores:
    """A table's columns are fixed ahead of its rows, so all scores are walked through once for their names."""
    record = {name for pair in read_manifest(dataset) for name in pair.scores}
    sides = {(side, name) for row in _score_rows(dataset) for side in MODALITIES for name in row.get(side, {})}
    return _Scores(tuple(sorted(record)), tuple(sorted(sides, key=lambda pair: (MODALITIES.index(pair[0]), pair[1]))))


def _score_rows(dataset: Path) -> Iterator[dict[str, Any]]:
    files = [path for path in (dataset / "scores").glob("*.jsonl") if path.stem.isdecimal()]
    for path in sorted(files, key=lambda path: int(path.stem)):
        for number, row in enumerate(read_jsonl(path, "scores"), start=1):
            yield _about_a_pair(row, f"{path} line {number}", dict.fromkeys(MODALITIES, dict))


def _drop_rows(dataset: Path) -> Iterator[dict[str, Any]]:
    path = dataset / DROPPED
    for number, row in enumerate(read_jsonl(path, "dropped pairs") if path.exists() else (), start=1):
        yield _about_a_pair(row, f"{path} line {number}", {"reasons": list})


def _about_a_pair(row: Any, where: str, parts: dict[Any, type]) -> dict[str, Any]:
    fits = isinstance(row, dict) and isinstance(row.get("pair_id"), str)
    if not fits or not all(isinstance(row.get(name, kind()), kind) for name, kind in parts.items()):
        raise InputError(f"{where} is no line about a pair; make the file anew")
    for side in MODALITIES:
        if not all(type(value) in (int, float) for value in row.get(side, {}).values()):
            raise InputError(f"{where}: a score is a number; make the file anew")
    return dict(row)
