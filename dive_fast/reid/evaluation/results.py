"""What a score is of: the record, its line, and the averages over trials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.evaluation.metrics import Drawn, RankMetrics
from dive_fast.reid.evaluation.protocols import WORDS, Protocol, camera_number, sentence
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.types import Sample, to_dict

RANKS = (1, 5, 10, 20)


@dataclass(frozen=True)
class ReidResult:
    """Scores in percent, mean over the trials, and how they came about.

    `*_deviation` is the sample deviation over the trials (0 for one); `per_trial` has each trial's rank1, rank5, rank10,
    rank20, map and minp. `rerank` holds the settings of re-ranking, None without. `source` says what was scored: a
    "checkpoint", or "features" or "distances" of other code, and `checkpoint` is the SHA-256 of those weights or files.
    `source` "10 checkpoints" stands for a model a trial, `checkpoint` being the SHA-256 of theirs, one after the other.
    `other_people`: the checkpoint's people were declared to be others than the test people of the same names.
    """

    dataset: str
    protocol: dict[str, str | int]  # Protocol.facts
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

    def line(self) -> str:
        """The scores and all that they are of, for people."""
        several = len(self.per_trial.get("map", ())) > 1
        scores = (
            ("mAP", self.map, self.map_deviation),
            ("rank-1", self.rank1, self.rank1_deviation),
            ("mINP", self.minp, self.minp_deviation),
        )
        shown = (f"{name} {mean:.2f}" + (f" ± {spread:.2f}" if several else "") for name, mean, spread in scores)
        k = self.rerank
        facts = [
            self.dataset,
            sentence(self.protocol),
            f"{self.queries:,} queries ({self.valid_queries:,} valid), {self.gallery:,} gallery images",
            f"{self.source} {self.checkpoint[:12]}",
            "no re-ranking" if k is None else f"re-ranked (k1 {k['k1']}, k2 {k['k2']}, lambda {k['share']})",
        ]
        if self.other_people:
            facts.append("trained on other people of the same names, as declared")
        return f"{', '.join(shown)}\n{'; '.join(facts)}"


@dataclass(frozen=True)
class Labels:
    """Who is on each side and by which camera: ids str [N], cameras int [N]."""

    query_ids: NDArray[Any]
    gallery_ids: NDArray[Any]
    query_cams: NDArray[Any]
    gallery_cams: NDArray[Any]

    @classmethod
    def of(cls, query: Sequence[Sample], gallery: Sequence[Sample]) -> Labels:
        sides = (query, gallery)
        ids = (np.array([s.pid for s in side]) for side in sides)
        cams = (np.array([camera_number(s.camera) for s in side]) for side in sides)
        return cls(*ids, *cams)


def result_of(
    metrics: Sequence[RankMetrics],
    labels: Labels,
    trials: Sequence[Drawn],
    protocol: Protocol,
    *,
    checkpoint: str,
    dataset: str,
    flip: bool = False,
    rerank: RerankConfig | None = None,
    source: str = "checkpoint",
    other_people: bool = False,
) -> ReidResult:
    """The record of scores, one `RankMetrics` a trial."""
    facts = protocol.facts()
    first = trials[0]
    legacy = f" (legacy: published as {WORDS[protocol.direction]})" if protocol.mode == "legacy" else ""
    return ReidResult(
        dataset=dataset,
        protocol=facts,
        rule=protocol.rule,
        direction=WORDS[protocol.runs] + legacy,
        queries=len(labels.query_ids if first.query is None else first.query),
        gallery=len(labels.gallery_ids if first.gallery is None else first.gallery),
        flip=flip,
        checkpoint=checkpoint,
        rerank=None if rerank is None else to_dict(rerank),
        source=source,
        other_people=other_people,
        **averages(metrics),
    )


def averages(metrics: Sequence[RankMetrics]) -> dict[str, Any]:
    """Means and sample deviations over trials, in percent, by `ReidResult`'s names."""
    values = {f"rank{r}": [100 * float(m.cmc[r - 1]) for m in metrics] for r in RANKS}
    values |= {name: [100 * float(getattr(m, name)) for m in metrics] for name in ("map", "minp")}
    return {**over_trials(values), "valid_queries": min(m.valid_queries for m in metrics)}


def over_trials(values: dict[str, list[float]]) -> dict[str, Any]:
    """Means over the trials, sample deviations (0 for one trial) of the chief scores, and `values` themselves."""
    found: dict[str, Any] = {name: float(np.mean(each)) for name, each in values.items()}
    for name in ("rank1", "map", "minp"):
        found[f"{name}_deviation"] = float(np.std(values[name], ddof=1)) if len(values[name]) > 1 else 0.0
    return {**found, "per_trial": values}
