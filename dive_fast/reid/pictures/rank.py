"""What each query finds, in order, and which queries are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.evaluation.metrics import Drawn, Rule, score_trials
from dive_fast.reid.evaluation.protocols import camera_number
from dive_fast.types import InputError, Sample

Order = Literal["random", "worst", "best"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Hit:
    """One gallery image as a query finds it; `rank` counts from 1, without the images that the query ignores."""

    row: int
    rank: int
    distance: float
    right: bool


@dataclass(frozen=True)
class Ranking:
    """What query `row` finds: the nearest `top`, and the first right image (in `top` or behind it).

    `ap` is in 0..1, `matches` the number of right images in what it searches.
    """

    row: int
    ap: float
    matches: int
    first: Hit
    top: tuple[Hit, ...]


@dataclass(frozen=True)
class Retrieval:
    """Queries, the gallery of one trial and their distances float32 [Q, G].

    `ignored` bool [Q, G] marks what a query does not see (None: it sees everything), `aps` float64 [Q] is each query's
    AP in 0..1, NaN for one without a match, and `hits` bool [Q] whether its nearest image is right.
    """

    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    distances: NDArray[np.float32]
    ignored: NDArray[np.bool_] | None
    aps: NDArray[np.float64]
    hits: NDArray[np.bool_]

    def cameras(self) -> list[str]:
        """The queries' cameras, sorted."""
        return sorted({s.camera for s in self.query})

    def rows_of(self, camera: str) -> NDArray[np.int64]:
        """Rows of that camera's queries that have a match, in order."""
        return np.flatnonzero(np.array([s.camera == camera for s in self.query]) & ~np.isnan(self.aps))

    def ranking(self, row: int, top: int) -> Ranking:
        """What the query `row` finds; it must have a match."""
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
    """Up to `count` query rows of a camera: at random (by `seed`), or those with the lowest or highest AP first.

    Nobody comes twice before everybody came once, because one person's queries are alike.
    """
    rows = retrieval.rows_of(camera)
    if order == "random":
        rows = np.random.default_rng([seed, *camera.encode()]).permutation(rows)
    else:
        sign = 1 if order == "worst" else -1
        rows = rows[np.argsort(sign * retrieval.aps[rows], kind="stable")]
    return _everybody_first(rows, [s.pid for s in retrieval.query], count)


def _everybody_first(rows: Sequence[int] | NDArray[Any], pids: Sequence[str], count: int) -> list[int]:
    seen: dict[str, int] = {}
    turn = []
    for row in rows:
        turn.append(seen.get(pids[row], 0))
        seen[pids[row]] = turn[-1] + 1
    return [int(rows[i]) for i in np.argsort(turn, kind="stable")[:count]]


def check_orders(orders: Sequence[str]) -> tuple[Order, ...]:
    """The orders by name; an unknown one, one given twice, or none at all raises `InputError`."""
    wrong = [name for name in orders if name not in ORDERS]
    if wrong or not orders or len(set(orders)) < len(orders):
        raise InputError(f"orders are different ones of {', '.join(ORDERS)}, got {', '.join(orders) or 'none'}")
    return tuple(name for name in ORDERS if name in orders)


def retrieve(
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    rule: Rule,
) -> Retrieval:
    """The retrieval of one trial's sides from their unit features float32 [Q, D] and [G, D], by cosine distance."""
    distances = 1 - features[0] @ features[1].T
    people = [np.array([s.pid for s in side]) for side in (query, gallery)]
    cameras = [np.array([camera_number(s.camera) for s in side]) for side in (query, gallery)]
    (scores,) = score_trials(distances, *people, *cameras, trials=[Drawn()], protocol=rule)
    ignored = None
    if rule == "sysu":  # the two cameras share a place
        ignored = (cameras[0][:, None] == 3) & (cameras[1] == 2)
    elif rule == "llcm":
        ignored = (people[0][:, None] == people[1]) & (cameras[0][:, None] == cameras[1])
    return Retrieval(tuple(query), tuple(gallery), distances, ignored, scores.ap, scores.first == 0)
