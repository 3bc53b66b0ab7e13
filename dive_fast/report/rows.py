"""A dataset read once, pair by pair, each joined with its scores and with why a filter dropped it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from dive_fast.io import read_json, read_jsonl
from dive_fast.synth.manifest import DROPPED, dataset_plan, read_shard, shard_files
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.types import MODALITIES, InputError, Modality, PairRecord

SIDES = ("pair", *MODALITIES)
SideScores = dict[Modality, dict[str, float]]


class ScoreKey(NamedTuple):
    """A score and what it is of: "rgb", "ir", or "pair" for one that the pair's own record has."""

    side: str
    name: str


@dataclass(frozen=True)
class Row:
    """One finished pair. `reasons` says why a filter dropped it; None: it was not dropped."""

    record: PairRecord
    scores: dict[ScoreKey, float]
    reasons: list[str] | None


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard; `written` is when its file was, in Unix seconds."""

    rows: list[Row]
    written: float


@dataclass(frozen=True)
class Meaning:
    """What a score says; `high_is_good` None where nobody wrote it down."""

    text: str = ""
    high_is_good: bool | None = None


class DatasetRows:
    """Iterates over the shards of a dataset in plan order, one shard in memory at a time.

    `strays` counts, after a whole pass, the lines of dropped.jsonl and of scores/ about pairs that the dataset lacks.
    Raises `InputError` for no plan, a broken shard, or broken scores.
    """

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset
        self.plan = dataset_plan(dataset)
        self.strays: Counter[str] = Counter()

    def __iter__(self) -> Iterator[ShardRows]:
        self.strays.clear()
        drops = _Drops(self.dataset, self.plan)
        for path in shard_files(self.dataset):
            records = list(read_shard(path))
            scored = self.dataset / "scores" / path.name
            scores = dict(score_lines(scored)) if scored.exists() else {}
            reasons = drops.reasons(records)
            rows = [_row(record, scores.pop(record.spec.pair_id, {}), reasons) for record in records]
            self.strays["scores"] += len(scores)
            yield ShardRows(rows, path.stat().st_mtime)
        self.strays[DROPPED] = drops.strays()


def _row(record: PairRecord, scores: SideScores, reasons: dict[str, list[str]]) -> Row:
    sides: dict[str, dict[str, float]] = {"pair": record.scores, **scores}
    return Row(
        record,
        {ScoreKey(side, name): float(value) for side, named in sides.items() for name, value in named.items()},
        reasons.get(record.spec.pair_id),
    )


def score_meanings(dataset: Path) -> dict[str, Meaning]:
    """What scores/scores.json says of each score; nothing when there is no such file."""
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
        raise InputError(f"{where}: expected an object of scores, got {scores!r}; run dive-fast score --overwrite")
    for name, value in scores.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(
                f"{where} {name} is {json.dumps(value)}, which is no finite number; run dive-fast score --overwrite"
            )
    return scores


class _Drops:
    """dropped.jsonl beside the records: both are in plan order, so one line at a time is enough."""

    def __init__(self, dataset: Path, plan: SynthesisPlan) -> None:
        self._plan = plan
        starts = accumulate((person.total for person in plan.identities), initial=0)
        self._places = {p.pid: range(start, start + p.total) for p, start in zip(plan.identities, starts, strict=False)}
        self._lines = self._read(dataset / DROPPED)
        self._next = next(self._lines, None)
        self._strays = 0

    def reasons(self, records: list[PairRecord]) -> dict[str, list[str]]:
        """Why pairs of a shard were dropped, by pair id; takes every line up to the shard's last pair."""
        ids = {record.spec.pair_id for record in records}
        last = max((self._place(r.spec.pid, r.spec.index) for r in records), default=-1)
        found: dict[str, list[str]] = {}
        while self._next is not None and self._next[0] <= last:
            _, pair_id, reasons = self._next
            if pair_id in ids:
                found[pair_id] = reasons
            else:
                self._strays += 1
            self._next = next(self._lines, None)
        return found

    def strays(self) -> int:
        """The lines that no shard took; reads on to the end."""
        return self._strays + sum(1 for _ in self._lines) + (self._next is not None)

    def _read(self, path: Path) -> Iterator[tuple[int, str, list[str]]]:
        """(number in the plan, pair id, reasons) of each line; -1 for one that is not planned."""
        for number, line in enumerate(read_jsonl(path, "dropped pairs") if path.exists() else (), start=1):
            pair_id, reasons = (line.get("pair_id"), line.get("reasons")) if isinstance(line, dict) else (None, None)
            if (
                not isinstance(pair_id, str)
                or not isinstance(reasons, list)
                or not all(isinstance(reason, str) for reason in reasons)
            ):
                raise InputError(f"{path} line {number} needs a pair_id and a list of reasons; filter again")
            pid, _, index = pair_id.rpartition("-")[0].rpartition("-")  # PID-INDEX-CAMERA
            known = index.isascii() and index.isdecimal() and len(index) < 12
            yield self._place(pid, int(index)) if known else -1, pair_id, reasons

    def _place(self, pid: str, index: int) -> int:
        """A pair's number in the plan; -1 for one that is not planned."""
        numbers = self._places.get(pid, range(0))
        return numbers[index] if 0 <= index < len(numbers) else -1
