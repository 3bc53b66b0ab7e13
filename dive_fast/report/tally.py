"""Counts of a dataset in one pass: a few numbers for each identity, camera, score and shard."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from dive_fast.report.rows import Row, ScoreKey
from dive_fast.types import InputError, shown

STATUS = ("done", "dropped", "rejected")
MOST_SCORES = 100
_KINDS = 31  # bits of a column of uint32, less the one for all further kinds
_OTHER = "other reasons"
_NUMBERS = re.compile(r"(?<!\S)(?:[<>=]+|[-+]?[\d.,]*\d(?:e[-+]?\d+)?)(?!\S)")  # and signs that stand alone


def status_of(row: Row) -> int:
    """The index in `STATUS`: dropped by a filter, rejected by synth, or done."""
    if row.reasons is not None:
        return STATUS.index("dropped")
    return STATUS.index("done" if row.record.status == "done" else "rejected")


def reason_kind(reason: str) -> str:
    """A reason without its numbers: "identity (ir)" of "identity 0.31 < 0.5 (ir)"."""
    return " ".join(_NUMBERS.sub(" ", reason).split())[:60] or _OTHER


@dataclass
class ScoreTally:
    """Counts of one score; `column` names it in files, as the score's own name is arbitrary."""

    column: str
    count: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)


@dataclass
class Tally:
    """Counts, and numbers for names in the order of their appearance, which the page's columns hold."""

    identities: dict[str, int] = field(default_factory=dict)
    status_by_identity: list[list[int]] = field(default_factory=list)  # [identity][STATUS]
    cameras: dict[str, int] = field(default_factory=dict)
    status_by_camera: list[list[int]] = field(default_factory=list)  # [camera][STATUS], a pair counts for both cameras
    cells: Counter[tuple[int, int]] = field(default_factory=Counter)  # (identity, camera): pairs
    kinds: dict[str, int] = field(default_factory=dict)
    kind_counts: Counter[str] = field(default_factory=Counter)
    status: Counter[str] = field(default_factory=Counter)
    engines: Counter[str] = field(default_factory=Counter)
    scores: dict[ScoreKey, ScoreTally] = field(default_factory=dict)
    pairs: int = 0

    def add(self, row: Row) -> dict[str, int]:
        """Counts a pair and returns its numbers: pid, rgb, ir, status, and a bit for each kind of reason."""
        spec, status = row.record.spec, status_of(row)
        pid = _number(self.identities, spec.pid, self.status_by_identity)
        rgb = _number(self.cameras, spec.rgb, self.status_by_camera)
        ir = _number(self.cameras, spec.ir, self.status_by_camera)
        self.status_by_identity[pid][status] += 1
        for camera in {rgb, ir}:
            self.status_by_camera[camera][status] += 1
            self.cells[pid, camera] += 1
        self.status[STATUS[status]] += 1
        self.engines[row.record.engine_fingerprint] += 1
        for key, value in row.scores.items():
            self._score(key).add(value)
        self.pairs += 1
        return {"pid": pid, "rgb": rgb, "ir": ir, "status": status, "reasons": self._reasons(row.reasons or [])}

    def _reasons(self, reasons: list[str]) -> int:
        kinds = {reason_kind(reason) for reason in reasons}
        kinds = {kind if kind in self.kinds or len(self.kinds) < _KINDS else _OTHER for kind in kinds}
        self.kind_counts.update(kinds)
        return sum(1 << self.kinds.setdefault(kind, len(self.kinds)) for kind in sorted(kinds))

    def _score(self, key: ScoreKey) -> ScoreTally:
        if key not in self.scores:
            if len(self.scores) == MOST_SCORES:
                raise InputError(
                    f"the dataset has more than {MOST_SCORES} kinds of scores, as {shown(key.name)}; score it again"
                )
            self.scores[key] = ScoreTally(f"s{len(self.scores)}")
        return self.scores[key]


def _number(numbers: dict[str, int], name: str, counts: list[list[int]]) -> int:
    if name not in numbers:
        numbers[name] = len(numbers)
        counts.append([0] * len(STATUS))
    return numbers[name]
