"""A retrieval task: the images of both sides and the trials of a protocol; it scores features and distances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.evaluation.metrics import QueryScores, Rows, score_trials, summary
from dive_fast.reid.evaluation.protocols import (
    Permutations,
    Protocol,
    Trial,
    camera_number,
    check_cameras,
    draw_trials,
)
from dive_fast.reid.evaluation.rerank import RerankConfig, Reranked
from dive_fast.reid.evaluation.results import RANKS, ReidResult, over_trials
from dive_fast.types import MODALITIES, InputError, Sample, to_dict


def check_sides(
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
) -> None:
    """Raises `InputError` for sides whose score would mean nothing.

    These are empty sides, files listed twice, images without a label, synthetic images, images of the wrong modality for
    the direction, and samples of another data set than the protocol's.
    """
    sides = (("query", query, protocol.query_modality), ("gallery", gallery, protocol.gallery_modality))
    for name, samples, modality in sides:
        if not samples:
            raise InputError(f"the {name} is empty; give it images of the test identities")
        for sample in samples:
            if not sample.pid or sample.modality not in MODALITIES:
                raise InputError(f"the {name} holds {sample.path} without an identity or a modality; label every image")
            if sample.source != "real":
                raise InputError(f"the {name} holds a synthetic image ({sample.path}); evaluate on real ones only")
            if sample.modality != modality:
                raise InputError(f"the {name} holds {sample.path} of modality {sample.modality}, expected {modality}")
        check_cameras(samples, protocol)
    twice = [path for path, count in Counter(s.path for s in [*query, *gallery]).items() if count > 1]
    if twice:
        raise InputError(f"query and gallery list {len(twice)} file(s) more than once, first {min(twice)}")


class Labels(NamedTuple):
    """Identities (str [N]) and camera numbers (int [N]) of both sides, in the order of `score_trials`."""

    query_ids: NDArray[Any]
    gallery_ids: NDArray[Any]
    query_cams: NDArray[Any]
    gallery_cams: NDArray[Any]

    @classmethod
    def from_samples(cls, query: Sequence[Sample], gallery: Sequence[Sample]) -> Labels:
        sides = (query, gallery)
        ids = (np.array([s.pid for s in side]) for side in sides)
        cams = (np.array([camera_number(s.camera) for s in side]) for side in sides)
        return cls(*ids, *cams)


@dataclass(frozen=True)
class RetrievalTask:
    """The labels of both sides, the trials that search them, their protocol and the data set's name."""

    labels: Labels
    trials: Sequence[Trial]
    protocol: Protocol
    dataset: str

    @classmethod
    def from_samples(
        cls,
        query: Sequence[Sample],
        gallery: Sequence[Sample],
        protocol: Protocol = Protocol(),  # noqa: B008 - frozen
        permutations: Permutations | None = None,
        dataset: str = "pocket",
    ) -> RetrievalTask:
        """Checks both sides and draws the trials; raises `InputError` as `check_sides` and `draw_trials` do."""
        check_sides(query, gallery, protocol)
        trials = draw_trials(query, gallery, protocol, permutations)
        return cls(Labels.from_samples(query, gallery), trials, protocol, dataset)

    def score_distances(self, distances: NDArray[Any] | Rows) -> list[QueryScores]:
        """Scores distances [Q, G], smaller is nearer, for each trial."""
        return score_trials(distances, *self.labels, trials=self.trials, protocol=self.protocol.rule)

    def score_features(
        self, query: NDArray[Any], gallery: NDArray[Any], rerank: RerankConfig | None = None
    ) -> list[QueryScores]:
        """Scores unit features [Q, D] and [G, D] by cosine distance for each trial.

        Re-ranking compares the images of one trial only, so each trial has its own distances.
        """
        if rerank is None:
            return self.score_distances(lambda part: 1 - query[part] @ gallery.T)
        found = []
        for trial in self.trials:
            rows = np.arange(len(query)) if trial.query is None else np.asarray(trial.query, np.intp)
            columns = np.arange(len(gallery)) if trial.gallery is None else np.asarray(trial.gallery, np.intp)
            own = (side[chosen] for side, chosen in zip(self.labels, (rows, columns) * 2, strict=True))
            distances = Reranked(query[rows], gallery[columns], rerank).rows
            found += score_trials(distances, *own, trials=[Trial()], protocol=self.protocol.rule)
        return found

    def result(
        self,
        scores: Sequence[QueryScores],
        checkpoint: str,
        *,
        flip: bool = False,
        rerank: RerankConfig | None = None,
        source: str = "checkpoint",
        other_people: bool = False,
    ) -> ReidResult:
        """Returns the record of the trials' scores; the arguments are fields of `ReidResult`."""
        protocol, first = self.protocol, self.trials[0]
        metrics = [summary(one, max(RANKS), protocol.rule) for one in scores]
        values = {f"rank{rank}": [100 * float(m.cmc[rank - 1]) for m in metrics] for rank in RANKS}
        values |= {name: [100 * float(getattr(m, name)) for m in metrics] for name in ("map", "minp")}
        return ReidResult(
            dataset=self.dataset,
            protocol=protocol.metadata(),
            rule=protocol.rule,
            direction=protocol.direction_name,
            queries=len(self.labels.query_ids if first.query is None else first.query),
            gallery=len(self.labels.gallery_ids if first.gallery is None else first.gallery),
            valid_queries=min(m.valid_queries for m in metrics),
            flip=flip,
            checkpoint=checkpoint,
            rerank=None if rerank is None else to_dict(rerank),
            source=source,
            other_people=other_people,
            **over_trials(values),
        )
