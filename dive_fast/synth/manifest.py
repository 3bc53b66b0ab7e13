"""The record of a synthesized dataset: shards/NNNNN.jsonl, one finished pair a line, and what it says about the files.

A shard's file is written last and whole, so a pair that is recorded is complete. Readers walk through the records and
never hold more than a few numbers of each.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from dive_fast.io import canonical_json
from dive_fast.json_files import parse_json, read_jsonl
from dive_fast.synth.planfile import SynthesisPlan, load_plan
from dive_fast.synth.records import checked, is_inside
from dive_fast.types import MODALITIES, InputError, PairRecord, Sample, Source, to_dict

SHARD = re.compile(r"shards/(\d{5,})\.jsonl")
SHA256 = re.compile("[0-9a-f]{64}")
DROPPED = "dropped.jsonl"


def shard_name(number: int) -> str:
    """The record file of shard `number`, counted from 0, relative to the dataset."""
    return f"shards/{number:05d}.jsonl"


def shard_lines(records: Iterable[PairRecord]) -> bytes:
    """What a shard's file holds."""
    return "".join(canonical_json(to_dict(record)) + "\n" for record in records).encode()


def read_manifest(out: Path | str) -> Iterator[PairRecord]:
    """Every finished pair of a dataset, in plan order; no plan, or a broken shard, raises `InputError`."""
    out = Path(out)
    dataset_plan(out)
    for path in shard_files(out):
        yield from read_shard(path)


def read_pairs(out: Path | str) -> list[Sample]:
    """Returns both sides of every finished pair of a dataset: photos as "real" samples, generated images as "synthetic".

    A photo that stands in several pairs is one sample. Pairs that were rejected, or dropped by a filter, are left out.
    Warns when the dataset is not finished.
    """
    out = Path(out)
    planned = len(dataset_plan(out).pairs)
    gone = dropped(out)
    recorded = 0
    found: dict[str, Sample] = {}
    for record in read_manifest(out):
        recorded += 1
        if record.status != "done" or record.spec.pair_id in gone:
            continue
        for side in MODALITIES:
            camera = record.spec.rgb if side == "rgb" else record.spec.ir
            source: Source = "real" if side == "rgb" and record.spec.photo is not None else "synthetic"
            name = record.files[side]
            found.setdefault(name, Sample(out / name, record.spec.pid, camera, source, side))
    if recorded < planned:
        warnings.warn(
            f"{out} holds {recorded:,} of its plan's {planned:,} pairs; run synth again to finish it", stacklevel=2
        )
    return list(found.values())


def dropped(out: Path | str) -> set[str]:
    """The ids of the pairs that a filter dropped; none where none was run."""
    path = Path(out) / DROPPED
    if not path.exists():
        return set()
    found = set()
    for number, row in enumerate(read_jsonl(path, "dropped pairs"), start=1):
        if not isinstance(row, dict) or not isinstance(row.get("pair_id"), str):
            raise InputError(f"{path} line {number} names no pair_id; filter again")
        found.add(row["pair_id"])
    return found


def dataset_plan(out: Path | str) -> SynthesisPlan:
    """The plan of a dataset; a folder without one raises `InputError`."""
    path = Path(out) / "plan.json"
    if not path.is_file():
        raise InputError(f"{out} is no synthesized dataset (it has no plan.json); make one with `dive-fast synth`")
    return load_plan(path)


def shard_files(out: Path) -> list[Path]:
    """The record files that are there, in order."""
    found = [path for path in (out / "shards").glob("*.jsonl") if SHARD.fullmatch(f"shards/{path.name}")]
    return sorted(found, key=lambda path: int(path.stem))


def read_shard(path: Path) -> Iterator[PairRecord]:
    """The records of one shard's file; what is no file raises `InputError`."""
    if not path.is_file():
        raise InputError(f"{path} is no file; remove it, and dive-fast synth --check makes its pairs again")
    return parse_shard(path.read_bytes(), str(path))


def parse_shard(data: bytes, where: str) -> Iterator[PairRecord]:
    """The records in the bytes of a shard's file; anything that is no record raises `InputError` naming the line."""
    if not data.endswith(b"\n"):
        raise InputError(f"shard {where} ends in the middle of a line; run synth again with --check")
    for number, line in enumerate(data.splitlines(), start=1):
        at = f"{where} line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"shard: {at} is not valid JSON; run synth again with --check") from error
        record = checked(PairRecord, row, at)
        if not all(set(fields) == set(MODALITIES) for fields in (record.files, record.sha256, record.sizes)):
            raise InputError(f"{at}: a pair needs file, hash and size of both sides; run synth again with --check")
        if not (record.lost or all(map(SHA256.fullmatch, record.sha256.values()))):
            raise InputError(f"{at}: a hash is none; run synth again with --check")
        if not all(is_inside(name) for name in record.files.values()):
            raise InputError(f"{at}: a file lies outside the dataset; run synth again with --check")
        yield record
