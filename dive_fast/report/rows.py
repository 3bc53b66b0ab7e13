"""A dataset's pairs, each joined with its scores and the reasons why a filter dropped it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dive_fast.io import brief
from dive_fast.json_files import read_json, read_jsonl
from dive_fast.synth.manifest import DROPPED, dataset_plan, read_shard, shard_files
from dive_fast.types import MODALITIES, InputError, Modality, PairRecord, shown

SIDES = ("pair", *MODALITIES)
SideScores = dict[Modality, dict[str, float]]


class ScoreKey(NamedTuple):
    """A score and its side: "rgb", "ir", or "pair" for one of the pair's own record."""

    side: str
    name: str


@dataclass(frozen=True)
class Row:
    """One finished pair. `reasons` are those of a filter that dropped it; None if none did."""

    record: PairRecord
    scores: dict[ScoreKey, float]
    reasons: list[str] | None


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard; `written` is its file's time in Unix seconds."""

    rows: list[Row]
    written: float


@dataclass(frozen=True)
class Meaning:
    """A score's description; `high_is_good` is None if unknown."""

    text: str = ""
    high_is_good: bool | None = None


class DatasetRows:
    """Iterates over the shards of a dataset in plan order, with one shard and the reasons of drops in memory.

    `strays` counts, after a whole pass, the lines of dropped.jsonl and of scores/ about pairs that the dataset lacks.
    Raises `InputError` for no plan, a broken shard, or broken scores.
    """

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset
        self.plan = dataset_plan(dataset)
        self.strays: Counter[str] = Counter()

    def __iter__(self) -> Iterator[ShardRows]:
        self.strays.clear()
        drops = dict(_drops(self.dataset / DROPPED))
        for path in shard_files(self.dataset):
            records = list(read_shard(path))
            scored = self.dataset / "scores" / path.name
            scores = dict(score_lines(scored)) if scored.exists() else {}
            rows = [_row(record, scores, drops) for record in records]
            self.strays["scores"] += len(scores)
            yield ShardRows(rows, path.stat().st_mtime)
        self.strays[DROPPED] = len(drops)


def _row(record: PairRecord, scores: dict[str, SideScores], drops: dict[str, list[str]]) -> Row:
    """Joins a record with its scores and reasons, which leave their dictionaries."""
    pair_id = record.spec.pair_id
    sides = [("pair", record.scores), *scores.pop(pair_id, {}).items()]
    named = {ScoreKey(side, name): float(value) for side, values in sides for name, value in values.items()}
    return Row(record, named, drops.pop(pair_id, None))


def score_meanings(dataset: Path) -> dict[str, Meaning]:
    """Each score's description in scores/scores.json; empty without such a file."""
    path = dataset / "scores" / "scores.json"
    if not path.exists():
        return {}
    data = read_json(path, "scores")
    listed = data.get("scores") if isinstance(data, dict) else None
    if not isinstance(listed, dict):
        raise InputError(f"{path} names no scores; score the dataset again")
    return {name: _meaning(entry) for name, entry in listed.items()}


def _meaning(entry: Any) -> Meaning:
    if not isinstance(entry, dict):
        return Meaning(str(entry))
    good = entry.get("high_is_good")
    return Meaning(str(entry.get("meaning", "")), good if isinstance(good, bool) else None)


def score_lines(path: Path) -> Iterator[tuple[str, SideScores]]:
    """The pair ids and scores of one file of scores/; a broken line raises `InputError` with its number."""
    for number, line in enumerate(read_jsonl(path, "scores"), start=1):
        where = f"{path} line {number}"
        if not isinstance(line, dict) or not isinstance(line.get("pair_id"), str):
            raise InputError(f"{where} names no pair_id; run dive-fast score --overwrite")
        yield line["pair_id"], {side: _side_scores(line.get(side, {}), f"{where} {side}") for side in MODALITIES}


def _side_scores(scores: Any, where: str) -> dict[str, float]:
    if not isinstance(scores, dict):
        raise InputError(f"{where}: expected an object of scores, got {shown(scores)}; run dive-fast score --overwrite")
    for name, value in scores.items():
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            text = f"{where} {brief(name, 80)} is {shown(value)}, which is no finite number"
            raise InputError(f"{text}; run dive-fast score --overwrite")
    return {name: float(value) for name, value in scores.items()}


def _drops(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The pair ids and reasons of dropped.jsonl; empty without such a file."""
    for number, line in enumerate(read_jsonl(path, "dropped pairs") if path.exists() else (), start=1):
        held: dict[str, Any] = line if isinstance(line, dict) else {}
        pair_id, reasons = held.get("pair_id"), held.get("reasons")
        texts = isinstance(reasons, list) and all(isinstance(reason, str) for reason in reasons)
        if not isinstance(pair_id, str) or not isinstance(reasons, list) or not texts:
            raise InputError(f"{path} line {number} needs a pair_id and a list of reasons; filter again")
        yield pair_id, reasons
