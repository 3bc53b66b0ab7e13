"""The records of a comparison, written as `compare.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dive_fast.types import InputError, shown

Verdict = Literal["better", "worse", "not significant", "untested"]


@dataclass(frozen=True)
class SeedTest:
    """Paired t-test over seeds: would other trainings show the difference, on these test identities?

    `mean` and its 95 % interval `low`..`high` are in points of mAP; `p` is two-sided, `p_holm` corrected for all arms.
    `visible` is the true mean difference that the test finds with power 0.8, whatever it finds of the other arms.
    """

    seeds: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    visible: float


@dataclass(frozen=True)
class PeopleTest:
    """Paired test over identities of each query's AP: would other people show the difference, with these trained models?

    The queries of one identity are not independent, so they are flipped and resampled together. `mean` is over queries, in
    points of mAP; `low`..`high` is its 95 % percentile bootstrap interval; `p` is two-sided, by a sign-flip permutation test
    (all combinations of signs if `exact`), `p_holm` corrected for all arms; `visible` as in `SeedTest`, by a t-test,
    which the sign-flip test nears with many identities.
    """

    queries: int
    people: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    visible: float
    exact: bool


@dataclass(frozen=True)
class Significance:
    """An arm against the baseline: both tests, None where one is impossible, and the verdict."""

    seeds: SeedTest | None
    people: PeopleTest | None
    verdict: Verdict


@dataclass(frozen=True)
class Rate:
    """A fraction and its 95 % interval, in 0..1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """One training set's outcome. Lists have one value per seed, in the order of the seeds; scores in percent.

    `difference` is mAP minus the baseline's with the same seed; `gap_closed` is that difference over the oracle's (None for
    a seed in which the oracle is not above the baseline). Both are None, as `significance`, for an arm without anything to
    compare with. Deviations are sample standard deviations, None for a single seed. `apart` arms are trained without the
    set that the other arms share, as "synthetic-only" is. `kept` is the fraction of the arm's images that a ReID net takes
    for their own identity.
    """

    name: str
    identities: int
    visible: int
    infrared: int
    synthetic: int
    without_infrared: int  # identities
    map: list[float]
    rank1: list[float]
    minp: list[float]
    map_mean: float
    map_deviation: float | None
    rank1_mean: float
    difference: list[float] | None = None
    difference_mean: float | None = None
    difference_deviation: float | None = None
    gap_closed: list[float | None] | None = None
    gap_closed_mean: float | None = None
    gap_closed_deviation: float | None = None
    apart: bool = False
    significance: Significance | None = None
    kept: Rate | None = None


@dataclass(frozen=True)
class Comparison:
    """The arms of a comparison and what they were trained and tested with; `baseline` is None without such an arm."""

    arms: list[Arm]
    seeds: list[int]
    baseline: str | None
    oracle: str | None
    dataset: str
    protocol: dict[str, str | int]
    direction: str
    queries: int
    gallery: int
    config: dict[str, Any]

    def arm(self, name: str) -> Arm:
        """Returns the arm of that name; raises `InputError` for an unknown one."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise InputError(f"unknown arm {shown(name)}; the comparison has {', '.join(a.name for a in self.arms)}")

    def label(self, name: str) -> str:
        """Returns an arm's name, with its role in brackets if it is the baseline or oracle under another name."""
        role = {self.baseline: "baseline", self.oracle: "oracle"}.get(name, name)
        return name if role == name else f"{name} [{role}]"
