"""The record of a synthesized dataset: shards/NNNNN.jsonl, one finished pair a line, and what it says about the files.

A shard's file is written last and whole, so a pair that is recorded is complete.
"""

from __future__ import annotations

import math
import types
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dive_fast.io import read_json, read_jsonl, sha256_file, write_jsonl
from dive_fast.types import MODALITIES, InputError, PairRecord, Sample, Source, from_dict, to_dict

R = TypeVar("R")


def checked(cls: type[R], data: object, where: str) -> R:
    """A record, nested ones too, from untrusted JSON; unknown, missing and wrongly typed fields raise `InputError`."""
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy does not see that classes are hashable
    if isinstance(data, dict):
        data = {
            name: checked(hints[name], value, f"{where} {name}") if is_dataclass(hints.get(name)) else value
            for name, value in data.items()
        }
    record = from_dict(cls, data, where)
    for name, hint in hints.items():
        if not _fits(getattr(record, name), hint):
            raise InputError(f"{where}: {name} is {getattr(record, name)!r}, which is no {hint}; make the file again")
    return record


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)  # slow, and asked for every line of a manifest


def _fits(value: object, hint: Any) -> bool:
    if isinstance(hint, type) and hint is not float:
        return type(value) is hint  # bool is no int
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in arguments
    if kind in (Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if isinstance(value, dict):
        return kind is dict and all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items())
    if isinstance(value, tuple):
        return kind is tuple and all(_fits(item, arguments[0]) for item in value)
    return hint is float and type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def is_inside(name: str) -> bool:
    """Whether a relative POSIX path stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def shard_path(out: Path, number: int) -> Path:
    """The record file of shard `number`, counted from 0."""
    return out / "shards" / f"{number:05d}.jsonl"


def write_shard(out: Path, number: int, records: Sequence[PairRecord]) -> None:
    """Marks a shard as finished: its records, whole or not at all."""
    write_jsonl(shard_path(out, number), (to_dict(record) for record in records))


def read_manifest(out: Path | str) -> Iterator[PairRecord]:
    """Every finished pair of a dataset, in plan order; no plan, or a broken shard, raises `InputError`."""
    out = Path(out)
    _plan_file(out)
    for path in _shards(out):
        yield from _read_shard(path)


def samples(out: Path | str) -> list[Sample]:
    """Both sides of every finished pair as samples: photos are "real", generated images "synthetic".

    A photo that stands in several pairs is one sample. Warns when the dataset is not finished.
    """
    out = Path(out)
    planned = _planned_pairs(out)
    recorded = 0
    found: dict[str, Sample] = {}
    for record in read_manifest(out):
        recorded += 1
        if record.status != "done":
            continue
        for side in MODALITIES:
            camera = record.spec.rgb if side == "rgb" else record.spec.ir
            source: Source = "real" if side == "rgb" and record.spec.photo is not None else "synthetic"
            name = record.files[side]
            found.setdefault(name, Sample(out / name, record.spec.pid, camera, source, side))
    if recorded < len(planned):
        warnings.warn(
            f"{out} holds {recorded:,} of its plan's {len(planned):,} pairs; run synth again to finish it", stacklevel=2
        )
    return list(found.values())


def verify(out: Path | str) -> list[str]:
    """What is wrong with a dataset, one sentence each; nothing when it is whole.

    Looks for unreadable shards, pairs that are missing, unplanned or recorded twice, files that are missing or were
    changed since, and files that no record knows. Raises `InputError` only when `out` holds no plan.
    """
    out = Path(out)
    planned = _planned_pairs(out)
    records, problems = _readable_records(out)
    counts = Counter(record.spec.pair_id for record in records)
    missing = [pair_id for pair_id in planned if not counts[pair_id]]
    if missing:
        problems.append(f"{len(missing):,} planned pairs are not made yet, first {missing[0]}; run synth again")
    problems += [f"pair {pair_id} is not in the plan" for pair_id in counts if pair_id not in planned]
    problems += [f"pair {pair_id} is recorded {count} times" for pair_id, count in counts.items() if count > 1]
    hashes = {record.files[side]: record.sha256[side] for record in records for side in MODALITIES}
    for name, digest in hashes.items():
        if not (out / name).is_file():
            problems.append(f"{name} is missing; run synth again")
        elif sha256_file(out / name) != digest:
            problems.append(f"{name} was changed after it was made; delete it and run synth again")
    return problems + [f"{name} is in no record" for name in _other_files(out) if name not in hashes]


def _plan_file(out: Path) -> Path:
    path = out / "plan.json"
    if not path.is_file():
        raise InputError(f"{out} is no synthesized dataset (it has no plan.json); make one with `dive-fast synth`")
    return path


def _planned_pairs(out: Path) -> dict[str, None]:
    """The plan's pair ids in order; only those are read, so that readers need no synthesis code."""
    path = _plan_file(out)
    plan = read_json(path, "plan")
    try:
        return {str(pair["pair_id"]): None for pair in plan["pairs"]}
    except (KeyError, TypeError) as error:
        raise InputError(f"plan: {path} lists no pairs; make the dataset again") from error


def _shards(out: Path) -> list[Path]:
    found = (out / "shards").glob("[0-9][0-9][0-9][0-9][0-9]*.jsonl")
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _read_shard(path: Path) -> Iterator[PairRecord]:
    for number, row in enumerate(read_jsonl(path, "shard"), start=1):
        where = f"{path} line {number}"
        record = checked(PairRecord, row, where)
        if set(record.files) != set(MODALITIES) or set(record.sha256) != set(MODALITIES):
            raise InputError(f"{where}: a pair needs files and hashes of both sides; delete the file and rerun synth")
        if not all(is_inside(name) for name in record.files.values()):
            raise InputError(f"{where}: a file lies outside the dataset; delete the file and rerun synth")
        yield record


def _readable_records(out: Path) -> tuple[list[PairRecord], list[str]]:
    records: list[PairRecord] = []
    problems: list[str] = []
    for path in _shards(out):
        try:
            records += _read_shard(path)
        except InputError as error:
            problems.append(str(error))
    return records, problems


def _other_files(out: Path) -> list[str]:
    """Files that only a record could account for: all but the plan, the shards and the identity lists."""
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    own = {"plan.json", *(path.relative_to(out).as_posix() for path in _shards(out))}
    own |= {f"exp/{split}_id.txt" for split in ("train", "val", "test")}
    return [name for name in files if name not in own]
