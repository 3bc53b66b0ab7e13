"""The record of a ReID score: what was scored and how, and the averages over trials."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dive_fast.reid.evaluation.protocols import Protocol, describe
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.synth.records import checked
from dive_fast.types import InputError, to_dict

RANKS = (1, 5, 10, 20)
SCORES = (*(f"rank{rank}" for rank in RANKS), "map", "minp")


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


def read_result(
    data: object, where: str, protocol: Protocol, dataset: str, rerank: RerankConfig | None = None
) -> ReidResult:
    """A stored result of this protocol and re-ranking, under the name that the data set has now.

    Wrong types, another protocol, and means that are not those of its trials raise `InputError`, which names `where`.
    """
    found = checked(ReidResult, data, where)
    settings = None if rerank is None else to_dict(rerank)
    wanted = (protocol.metadata(), protocol.rule, protocol.direction_name, settings)
    if (found.protocol, found.rule, found.direction, found.rerank) != wanted or not _are_means(found):
        raise InputError(f"{where} holds no result of this protocol, or means of other trials; delete it and rerun")
    return replace(found, dataset=dataset)


def _are_means(result: ReidResult) -> bool:
    """Whether the scores are means and deviations of `per_trial`, which holds each score of every trial."""
    values = result.per_trial
    if set(values) != set(SCORES) or any(len(each) != result.protocol["trials"] for each in values.values()):
        return False
    means = {name: value for name, value in over_trials(values).items() if name != "per_trial"}
    return all(math.isclose(getattr(result, name), value, rel_tol=1e-9, abs_tol=1e-9) for name, value in means.items())
