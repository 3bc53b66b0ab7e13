"""The record of a ReID score: what was scored and how, and the averages over trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dive_fast.reid.evaluation.protocols import describe


@dataclass(frozen=True)
class ReidResult:
    """Scores in percent, mean over the trials, and how they came about.

    `*_deviation` is the sample standard deviation over the trials (0 for one); `per_trial` holds each trial's rank1, rank5,
    rank10, rank20, map and minp. `rerank` holds the settings of re-ranking, None without. `source` names what was scored:
    a "checkpoint", or "features" or "distances" of other code; `checkpoint` is the SHA-256 of those weights or files.
    "10 checkpoints" is a model a trial, and `checkpoint` the SHA-256 of their digests, one after the other. `other_people`:
    the user declared that the checkpoint's identities only share names with the test's.
    """

    dataset: str
    protocol: dict[str, str | int]  # Protocol.metadata
    rule: str
    direction: str
    queries: int  # per trial
    gallery: int  # images per trial
    valid_queries: int
    rank1: float
    rank5: float
    rank10: float
    rank20: float
    map: float
    minp: float
    rank1_deviation: float
    map_deviation: float
    flip: bool
    checkpoint: str
    minp_deviation: float = 0.0
    per_trial: dict[str, list[float]] = field(default_factory=dict)
    rerank: dict[str, float] | None = None
    source: str = "checkpoint"
    other_people: bool = False

    def describe(self) -> str:
        """Returns the scores and their circumstances in two lines."""
        several = len(self.per_trial.get("map", ())) > 1
        scores = (
            ("mAP", self.map, self.map_deviation),
            ("rank-1", self.rank1, self.rank1_deviation),
            ("mINP", self.minp, self.minp_deviation),
        )
        shown = (f"{name} {mean:.2f}" + (f" ± {std:.2f}" if several else "") for name, mean, std in scores)
        k = self.rerank
        parts = [
            self.dataset,
            describe(self.protocol),
            f"{self.queries:,} queries ({self.valid_queries:,} valid), {self.gallery:,} gallery images",
            f"{self.source} {self.checkpoint[:12]}",
            "no re-ranking" if k is None else f"re-ranked (k1 {k['k1']}, k2 {k['k2']}, lambda {k['share']})",
        ]
        if self.other_people:
            parts.append("trained on other people of the same names, as declared")
        return f"{', '.join(shown)}\n{'; '.join(parts)}"


def over_trials(values: dict[str, list[float]]) -> dict[str, Any]:
    """Returns fields of `ReidResult` from `values`, one per trial: means, standard deviations and `per_trial`."""
    found: dict[str, Any] = {name: float(np.mean(each)) for name, each in values.items()}
    for name in ("rank1", "map", "minp"):
        found[f"{name}_deviation"] = float(np.std(values[name], ddof=1)) if len(values[name]) > 1 else 0.0
    return {**found, "per_trial": values}
