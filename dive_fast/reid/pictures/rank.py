"""The gallery images that each query finds, in order, and the choice of queries to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.evaluation.metrics import score_trials
from dive_fast.reid.evaluation.protocols import Rule, Trial
from dive_fast.reid.evaluation.task import Labels
from dive_fast.reid.pictures.config import Order
from dive_fast.types import Sample


@dataclass(frozen=True)
class Hit:
    """One gallery image that a query finds; `rank` counts from 1, without the images that the query ignores."""

    row: int
    rank: int
    distance: float
    right: bool


@dataclass(frozen=True)
class Ranking:
    """The images that query `row` finds: the nearest `top`, and the first right image (in `top` or after it).

    `ap` is in 0..1, `matches` the number of right images that it searches.
    """

    row: int
    ap: float
    matches: int
    first: Hit
    top: tuple[Hit, ...]


@dataclass(frozen=True)
class Retrieval:
    """Queries, the gallery of one trial and their distances float32 [Q, G].

    `ignored` bool [Q, G] masks the images that a query ignores (None: none), `aps` float64 [Q] is each query's AP in 0..1,
    NaN for one without a match, and `hits` bool [Q] tells whether its nearest image is right.
    """

    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    distances: NDArray[np.float32]
    ignored: NDArray[np.bool_] | None
    aps: NDArray[np.float64]
    hits: NDArray[np.bool_]

    def cameras(self) -> list[str]:
        """Returns the queries' cameras, sorted."""
        return sorted({s.camera for s in self.query})

    def rows_of(self, camera: str) -> NDArray[np.int64]:
        """Returns the rows of that camera's queries that have a match, in order."""
        return np.flatnonzero(np.array([s.camera == camera for s in self.query]) & ~np.isnan(self.aps))

    def ranking(self, row: int, top: int) -> Ranking:
        """Returns what query `row` finds; it must have a match."""
        order = np.argsort(self.distances[row], kind="stable")
        if self.ignored is not None:
            order = order[~self.ignored[row][order]]
        pid = self.query[row].pid
        right = np.array([self.gallery[i].pid == pid for i in order])

        def hit(place: int) -> Hit:
            at = int(order[place])
            return Hit(at, place + 1, float(self.distances[row, at]), bool(right[place]))

        first = hit(int(right.argmax()))
        nearest = tuple(hit(place) for place in range(min(top, len(order))))
        return Ranking(row, float(self.aps[row]), int(right.sum()), first, nearest)


def choose(retrieval: Retrieval, camera: str, order: Order, count: int, seed: int = 0) -> list[int]:
    """Returns up to `count` query rows of a camera: at random (by `seed`), or by lowest or highest AP.

    One identity's queries are alike, so no identity repeats while others are left.
    """
    rows = retrieval.rows_of(camera)
    if order == "random":
        rows = np.random.default_rng([seed, *camera.encode()]).permutation(rows)
    else:
        sign = 1 if order == "worst" else -1
        rows = rows[np.argsort(sign * retrieval.aps[rows], kind="stable")]
    turns = occurrences([retrieval.query[row].pid for row in rows])
    return [int(rows[i]) for i in np.argsort(turns, kind="stable")[:count]]


def occurrences(keys: Iterable[Hashable]) -> list[int]:
    """Returns 0 for a key's first occurrence, 1 for its second, ..."""
    seen: Counter[Hashable] = Counter()
    found = []
    for key in keys:
        found.append(seen[key])
        seen[key] += 1
    return found


def retrieve(
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    rule: Rule,
) -> Retrieval:
    """Returns one trial's retrieval by cosine distance of its sides' unit features, float32 [Q, D] and [G, D]."""
    distances = 1 - features[0] @ features[1].T
    labels = Labels.from_samples(query, gallery)
    (scores,) = score_trials(distances, *labels, trials=[Trial()], protocol=rule)
    ignored = None
    if rule == "sysu":  # the two cameras share a place
        ignored = (labels.query_cams[:, None] == 3) & (labels.gallery_cams == 2)
    elif rule == "llcm":
        same_camera = labels.query_cams[:, None] == labels.gallery_cams
        ignored = (labels.query_ids[:, None] == labels.gallery_ids) & same_camera
    return Retrieval(tuple(query), tuple(gallery), distances, ignored, scores.ap, scores.first == 0)
