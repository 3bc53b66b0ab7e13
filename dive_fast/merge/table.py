"""A dataset's manifest as one Parquet table, for questions that a data frame answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.environment.optional import optional
from dive_fast.merge.inputs import Progress
from dive_fast.outputs import begins_with, output_file
from dive_fast.report.rows import SIDES, DatasetRows, Row, ScoreKey
from dive_fast.types import MODALITIES, InputError

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 16_384  # rows; what is held in memory at once


def write_parquet(dataset: Path, file: Path, progress: Progress = lambda _: None, overwrite: bool = False) -> int:
    """Writes one row a finished pair, dropped ones included, and returns their number.

    Columns: the pair (pair_id, pid, index, rgb_camera, ir_camera, seed, photo), its files (rgb_file, ir_file, rgb_sha256,
    ir_sha256), engine_fingerprint, status, dropped, drop_reasons, and float64 scores: score_NAME of the records,
    score_rgb_NAME and score_ir_NAME of scores/. An equal `file` stays. Raises `InputError` for another one without
    `overwrite`, for other content, and when a sidecar does not fit the manifest; and `DiveError` without pyarrow.
    """
    parquet = optional("pyarrow.parquet", "a Parquet table")
    import pyarrow

    place = output_file(file, begins_with(b"PAR1"), overwrite)  # refuses before the manifest is read
    pairs = DatasetRows(dataset)
    known = {key for shard in pairs for row in shard.rows for key in row.scores}  # columns are fixed ahead of rows
    for sidecar, count in pairs.strays.items():
        if count:
            raise InputError(
                f"{dataset / sidecar} names {count:,} pairs that are not in the dataset; score or filter again"
            )
    scores = sorted(known, key=lambda key: (SIDES.index(key.side), key.name))
    schema = _schema(scores)
    rows, total = (_row(row, scores) for shard in pairs for row in shard.rows), 0
    with place as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(rows, ROW_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
            total += len(group)
            progress(len(group))
    return total


def _column(key: ScoreKey) -> str:
    return f"score_{key.name}" if key.side == "pair" else f"score_{key.side}_{key.name}"


def _row(row: Row, scores: Sequence[ScoreKey]) -> dict[str, Any]:
    record, spec = row.record, row.record.spec
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
        "dropped": row.reasons is not None,
        "drop_reasons": row.reasons or [],
        **{_column(key): row.scores.get(key) for key in scores},
    }


def _schema(scores: Sequence[ScoreKey]) -> pyarrow.Schema:
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
        **dict.fromkeys(map(_column, scores), real),
    }
    return pyarrow.schema(list(types.items()))
