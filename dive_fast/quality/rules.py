"""The rules of a filter: thresholds on scores, each for one side of a pair or for both."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dive_fast.io import nearest
from dive_fast.quality.config import CALIBRATED, Threshold
from dive_fast.types import MODALITIES, InputError, Modality


@dataclass(frozen=True)
class Rule:
    """Images of `side` (None: both) must have `score` of at least, or with `most` at most, `limit`."""

    score: str
    limit: float
    most: bool
    side: Modality | None = None
    why: str = ""  # where the limit comes from, if not from the user

    def sides(self) -> Sequence[Modality]:
        return MODALITIES if self.side is None else (self.side,)

    def breaks(self, value: float) -> bool:
        return value > self.limit if self.most else value < self.limit

    def badness(self, value: float) -> float:
        """How far `value` is on the wrong side of the limit; kept values give 0 or less."""
        return value - self.limit if self.most else self.limit - value

    def reason(self, value: float, side: Modality) -> str:
        """The reason in dropped.jsonl: "identity -0.31 < 0.1 (ir)"."""
        return f"{self.score} {value:.6g} {'>' if self.most else '<'} {self.limit:.6g} ({side})"

    def __str__(self) -> str:
        side = f"{self.side}." if self.side else ""
        note = f" ({self.why})" if self.why else ""
        return f"{side}{self.score} {'<=' if self.most else '>='} {self.limit:.6g}{note}"


def check_names(wanted: Iterable[Threshold], metadata: Mapping[str, Any]) -> None:
    """Raises `InputError` for scores that the dataset does not have."""
    known = metadata["scores"]
    for rule in wanted:
        if rule.score not in known:
            raise InputError(
                f"--{rule.kind} {rule.score}: the dataset has scores {', '.join(known)}{nearest(rule.score, known)}"
            )


def plain_rules(wanted: Iterable[Threshold], metadata: Mapping[str, Any]) -> list[Rule]:
    """The rules whose limit does not depend on the dataset's own scores."""
    rules: list[Rule] = []
    for one in wanted:
        if one.kind == "keep-fraction":
            continue
        if one.value == CALIBRATED:
            rules += _calibrated(one, metadata)
        else:
            rules.append(Rule(one.score, float(one.value), one.kind == "max", one.side))
    return rules


def _calibrated(one: Threshold, metadata: Mapping[str, Any]) -> list[Rule]:
    held = metadata.get("thresholds", {}).get(one.score, {})
    sides = [side for side in MODALITIES if side in held and one.side in (None, side)]
    if not sides:
        raise InputError(f"--max {one.score}={CALIBRATED}: scores.json holds no threshold for it; give a number")
    return [
        Rule(
            one.score,
            float(held[side]["value"]),
            True,
            side,
            f"{held[side]['percentile']:g}th percentile of real pairs",
        )
        for side in sides
    ]


class FractionLimits:
    """The limits that keep a fraction of the pairs, from all scores: 8 bytes a pair and rule.

    The worse side of a pair counts. Pairs at the limit are kept, so ties may keep a few more.
    """

    def __init__(self, wanted: Iterable[Threshold], metadata: Mapping[str, Any]) -> None:
        self.wanted = [one for one in wanted if one.kind == "keep-fraction"]
        self._most = [not metadata["scores"][one.score]["high_is_good"] for one in self.wanted]
        self._values = [array("d") for _ in self.wanted]

    def add(self, scores: Mapping[Modality, Mapping[str, float]]) -> None:
        for one, most, values in zip(self.wanted, self._most, self._values, strict=True):
            sides = MODALITIES if one.side is None else (one.side,)
            found = [scores[side][one.score] for side in sides if one.score in scores[side]]
            if found:
                values.append(max(found) if most else min(found))

    def rules(self) -> list[Rule]:
        rules = []
        for one, most, values in zip(self.wanted, self._most, self._values, strict=True):
            if values:
                limit = _limit(np.frombuffer(values), float(one.value), most)
                rules.append(Rule(one.score, limit, most, one.side, f"keeps the best {float(one.value):.4g}"))
        return rules


def _limit(values: np.ndarray, share: float, most: bool) -> float:
    """The worst of the best ceil(fraction * n) values."""
    count = min(len(values), int(np.ceil(share * len(values) - 1e-9)))
    return float(np.partition(values, count - 1)[count - 1] if most else np.partition(values, -count)[-count])
