"""Dropping pairs by their scores: dropped.jsonl, a report with pictures, and filter.json last."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dive_fast.data.names import abbreviate, natural_key
from dive_fast.io import sha256_file, write_json, write_jsonl
from dive_fast.progress import ProgressBar
from dive_fast.quality.config import FilterConfig
from dive_fast.quality.rules import FractionLimits, Rule, check_names, plain_rules
from dive_fast.quality.sidecar import Scored, metadata_path, read_metadata, read_scored, read_scores
from dive_fast.types import MODALITIES, InputError, Modality

VERSION = 1
DROPPED, RECORD = "dropped.jsonl", "filter.json"
SHOWN = 6  # examples of each kind: a row of the page
Kind = Literal["worst", "just dropped", "just kept"]
KINDS: tuple[Kind, ...] = ("worst", "just dropped", "just kept")


@dataclass(frozen=True)
class Example:
    """A pair that shows the effect of a rule; `value` is of `side`."""

    rule: Rule
    side: Modality
    value: float
    scored: Scored


@dataclass
class Tally:
    """The effect of a filter on a dataset, counted pair by pair."""

    rules: Sequence[Rule]
    pairs: int = 0
    dropped: int = 0
    without: Counter[str] = field(default_factory=Counter)  # generated sides that lack a score, by score
    by_rule: Counter[str] = field(default_factory=Counter)
    pairs_of: Counter[str] = field(default_factory=Counter)  # by identity
    dropped_of: Counter[str] = field(default_factory=Counter)
    pairs_by_camera: Counter[str] = field(default_factory=Counter)  # pairs with a generated side of that camera
    dropped_by_camera: Counter[str] = field(default_factory=Counter)
    _kept: dict[Modality, set[str]] = field(default_factory=lambda: {side: set() for side in MODALITIES})
    _examples: dict[tuple[str, Modality, Kind], list[tuple[float, int, Example]]] = field(default_factory=dict)

    def add(self, scored: Scored) -> list[str]:
        """Counts a pair and returns the reasons to drop it; a rejected pair has none."""
        if not scored.pair.made:
            return []
        reasons: list[str] = []
        for rule in self.rules:
            broken = False
            for side in rule.sides():
                if side not in scored.pair.made:
                    continue
                value = scored.scores[side].get(rule.score)
                if value is None:
                    self.without[rule.score] += 1
                    continue
                if rule.breaks(value):
                    broken = True
                    reasons.append(rule.reason(value, side))
                self._remember(Example(rule, side, value, scored))
            self.by_rule[str(rule)] += broken
        self._count(scored, bool(reasons))
        return reasons

    def _count(self, scored: Scored, gone: bool) -> None:
        pair = scored.pair
        self.pairs += 1
        self.dropped += gone
        self.pairs_of[pair.pid] += 1
        self.dropped_of[pair.pid] += gone
        for side in MODALITIES:
            if side in pair.made:
                self.pairs_by_camera[pair.cameras[side]] += 1
                self.dropped_by_camera[pair.cameras[side]] += gone
            if not gone:
                self._kept[side].add(pair.pid)

    def _remember(self, example: Example) -> None:
        """Keeps a few examples for the report: the worst, and those nearest to the limit on both sides."""
        bad = example.rule.badness(example.value)
        if example.rule.breaks(example.value):
            self._push("worst", bad, example)
            self._push("just dropped", -bad, example)
        else:
            self._push("just kept", bad, example)

    def _push(self, kind: Kind, rank: float, example: Example) -> None:
        heap = self._examples.setdefault((str(example.rule), example.side, kind), [])
        entry = (rank, -self.pairs, example)  # of equals the first pair stays
        if len(heap) < SHOWN:
            heapq.heappush(heap, entry)
        elif entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)

    def examples(self, rule: Rule, side: Modality, kind: Kind) -> list[Example]:
        """The examples of one kind, worst first."""
        held = [example for _, _, example in self._examples.get((str(rule), side, kind), [])]
        return sorted(held, key=lambda example: -rule.badness(example.value))

    def lost(self) -> dict[Modality, list[str]]:
        """Identities that would keep no image of a modality."""
        return {
            side: sorted((pid for pid in self.pairs_of if pid not in self._kept[side]), key=natural_key)
            for side in MODALITIES
        }


def filter_dataset(dataset: Path, config: FilterConfig, *, progress: bool = True) -> tuple[dict[str, Any], Tally]:
    """Drops every pair of `dataset` that breaks a threshold; returns the content of `filter.json` and the tally.

    A filter replaces the one before and judges its dropped pairs, too. No image is removed. Raises `InputError`, and changes
    nothing, for a dataset without scores, unknown scores, and, without `allow_lost`, an identity that would lose a modality.
    """
    if not config.thresholds:
        raise InputError("filter: give a threshold (--min, --max, --keep-fraction), or --undo")
    metadata, wanted = read_metadata(dataset), config.thresholds
    check_names(wanted, metadata)
    limits, total = FractionLimits(wanted, metadata), metadata["pairs"]
    if limits.wanted:
        bar = ProgressBar(read_scores(dataset), "read scores", total, leave=False, unit="pair", disable=not progress)
        for scores in bar:
            limits.add(scores)
    tally = Tally([*plain_rules(wanted, metadata), *limits.rules()])
    write_jsonl(dataset / DROPPED, _dropped_rows(dataset, tally, config.allow_lost, total, progress))
    record = _record(dataset, tally)
    write_json(dataset / RECORD, record)
    return record, tally


def undo(dataset: Path) -> int:
    """Removes the filter and returns the number of pairs that come back; without a filter raises `InputError`."""
    if not (dataset / DROPPED).is_file():
        raise InputError(f"dataset {dataset} has no filter to undo (no {DROPPED})")
    with open(dataset / DROPPED, "rb") as stream:
        count = sum(1 for _ in stream)
    (dataset / RECORD).unlink(missing_ok=True)
    (dataset / DROPPED).unlink()
    return count


def _dropped_rows(
    dataset: Path, tally: Tally, allow_lost: bool, total: int, progress: bool
) -> Iterator[dict[str, Any]]:
    """The lines of dropped.jsonl. A refusal at the end keeps the earlier file."""
    for scored in ProgressBar(read_scored(dataset), "filter", total, leave=False, unit="pair", disable=not progress):
        reasons = tally.add(scored)
        if reasons:
            yield {"pair_id": scored.pair.pair_id, "reasons": reasons}
    lost = tally.lost()
    if any(lost.values()) and not allow_lost:
        gone = sorted({pid for pids in lost.values() for pid in pids}, key=natural_key)
        raise InputError(
            f"filter: {tally.dropped:,} of {tally.pairs:,} pairs would go, and {len(gone):,} identities would be left "
            f"without {' or '.join(side for side in MODALITIES if lost[side])} images ({abbreviate(gone)}); lower the "
            "thresholds, or use --allow-lost"
        )
    (dataset / RECORD).unlink(missing_ok=True)  # from here on the old one would describe another file


def _record(dataset: Path, tally: Tally) -> dict[str, Any]:
    lost = tally.lost()
    return {
        "version": VERSION,
        "scores": sha256_file(metadata_path(dataset)),
        "thresholds": [
            {
                "score": r.score,
                "side": r.side,
                "limit": r.limit,
                "keep": "at most" if r.most else "at least",
                "why": r.why,
            }
            for r in tally.rules
        ],
        "pairs": tally.pairs,
        "dropped": tally.dropped,
        "dropped_sha256": sha256_file(dataset / DROPPED),
        "by_threshold": {str(rule): tally.by_rule[str(rule)] for rule in tally.rules},
        "by_camera": _drop_counts(tally.pairs_by_camera, tally.dropped_by_camera),
        "by_identity": _drop_counts(tally.pairs_of, tally.dropped_of),
        "without_score": dict(tally.without),
        "identities_lost": {side: pids for side, pids in lost.items() if pids},
    }


def _drop_counts(total: Counter[str], dropped: Counter[str]) -> dict[str, dict[str, int]]:
    return {name: {"pairs": total[name], "dropped": dropped[name]} for name in sorted(total, key=natural_key)}
