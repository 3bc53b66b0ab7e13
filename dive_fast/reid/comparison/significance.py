"""Whether an arm differs from the baseline by more than chance: over seeds, and over the people that were searched for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dive_fast.types import DiveError, InputError

F64 = NDArray[np.float64]
Verdict = Literal["better", "worse", "not significant", "untested"]

LEVEL = 0.05
DRAWS = 9_999  # random sign flips, and bootstrap samples
_EXACT = 13  # up to so many people every combination of signs is tried: 8,192
_CHUNK_CELLS = 2_000_000  # signs in work at a time


@dataclass(frozen=True)
class SeedTest:
    """Paired t-test over seeds: would the difference show in other trainings, on these test people?

    `mean` and its 95 % interval `low`..`high` are in points of mAP; `p` is two-sided, `p_holm` corrected for all arms.
    """

    seeds: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class PeopleTest:
    """Paired test over people of each query's AP: would the difference show for other people, with these trained nets?

    Queries of one person are not independent, so a person's are flipped, and drawn, together. `mean` is over queries, in
    points of mAP; `low`..`high` is its 95 % percentile bootstrap interval; `p` is two-sided, by a sign-flip permutation test
    (all combinations of signs if `exact`), `p_holm` corrected for all arms.
    """

    queries: int
    people: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float
    exact: bool


Test = TypeVar("Test", SeedTest, PeopleTest)


@dataclass(frozen=True)
class Significance:
    """Both tests of one arm against the baseline; None where there was nothing to test (one seed, one person, no APs).

    `verdict` is "better" or "worse" only if both, corrected, are below `LEVEL` and point the same way.
    """

    seeds: SeedTest | None
    people: PeopleTest | None
    verdict: Verdict


def require_scipy() -> None:
    """Raises `DiveError` when the t-test could not be made, so that it is known before the training and not after."""
    try:
        import scipy.stats  # type: ignore[import-untyped,import-not-found,unused-ignore]  # noqa: F401
    except ImportError as error:
        raise DiveError("the comparison's t-test over seeds needs scipy; pip install 'dive-fast[reid]'") from error


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 1979): the chance of any false alarm stays below the level."""
    count = len(p_values)
    corrected = [0.0] * count
    worst = 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def paired_t(differences: ArrayLike) -> tuple[float, float, float]:
    """Two-sided p of mean 0, and the mean's 95 % interval, of paired differences [n]; needs two or more."""
    require_scipy()
    from scipy import stats

    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"a t-test needs at least two paired differences, got shape {list(values.shape)}")
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    if error == 0:  # nothing varies: no evidence without a difference, and no doubt with one
        return (1.0 if mean == 0 else 0.0), mean, mean
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * error
    return float(2 * stats.t.sf(abs(mean) / error, len(values) - 1)), mean - half, mean + half


def needed_deviations(seeds: int) -> float:
    """How many of its own deviations over `seeds` a mean difference must exceed for p < `LEVEL`, one arm alone."""
    require_scipy()
    from scipy import stats

    return float(stats.t.ppf(1 - LEVEL / 2, seeds - 1)) / seeds**0.5


def flip_signs(totals: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, bool]:
    """Two-sided p that the sum of `totals` [people] is as far from 0 as it is, were each total's sign a coin's toss.

    All 2^people combinations if there are few people (then the second value is True), else `draws` random ones, of which
    the observed one counts as one more, so that p is never 0.
    """
    values = np.asarray(totals, np.float64)
    observed = abs(values.sum()) * (1 - 1e-12)  # sums in another order differ by rounding
    if len(values) <= _EXACT:
        bits = np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1
        return float((np.abs((1 - 2 * bits) @ values) >= observed).mean()), True
    rng = np.random.default_rng([seed, 0])
    reached, rows = 0, max(1, _CHUNK_CELLS // len(values))
    for start in range(0, draws, rows):
        signs = rng.integers(0, 2, (min(rows, draws - start), len(values)), np.int8) * 2 - 1
        reached += int((np.abs(signs @ values) >= observed).sum())
    return (reached + 1) / (draws + 1), False


def bootstrap_mean(totals: ArrayLike, counts: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of sum(totals) / sum(counts) when people are drawn with replacement; both [people]."""
    sums, sizes = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    people = len(sums)
    rng = np.random.default_rng([seed, 1])
    means, rows = [], max(1, _CHUNK_CELLS // people)
    for start in range(0, draws, rows):
        chosen = rng.integers(0, people, (min(rows, draws - start), people))
        means.append(sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def against(
    baseline: str,
    maps: Mapping[str, Sequence[float]],
    aps: Mapping[str, F64] | None,
    query_pids: Sequence[str],
) -> dict[str, Significance]:
    """Every arm but `baseline` against it, p-values corrected over these arms.

    `maps` holds an arm's mAP in percent for each seed; `aps` an arm's AP in 0..1 for each query, float64 [Q], the mean over
    seeds and trials and NaN for a query without a match (None: not known); `query_pids` [Q] who is asked for.
    """
    others = [name for name in maps if name != baseline]
    over_seeds = {name: _over_seeds(maps[name], maps[baseline]) for name in others}
    over_people: dict[str, PeopleTest | None] = dict.fromkeys(others)
    if aps is not None:
        over_people = {name: _over_people(aps[name] - aps[baseline], query_pids) for name in others}
    seeds, people = _corrected(over_seeds), _corrected(over_people)
    return {name: Significance(seeds[name], people[name], _verdict(seeds[name], people[name])) for name in others}


def _verdict(seeds: SeedTest | None, people: PeopleTest | None) -> Verdict:
    if seeds is None or people is None:
        return "untested"
    if max(seeds.p_holm, people.p_holm) >= LEVEL or (seeds.mean > 0) != (people.mean > 0):
        return "not significant"
    return "better" if seeds.mean > 0 else "worse"


def _corrected(tests: Mapping[str, Test | None]) -> dict[str, Test | None]:
    known = {name: test for name, test in tests.items() if test is not None}
    p_values = dict(zip(known, holm([test.p for test in known.values()]), strict=True))
    return {name: None if test is None else replace(test, p_holm=p_values[name]) for name, test in tests.items()}


def _over_seeds(maps: Sequence[float], baseline: Sequence[float]) -> SeedTest | None:
    if len(maps) < 2:
        return None
    differences = np.asarray(maps, np.float64) - np.asarray(baseline, np.float64)
    p, low, high = paired_t(differences)
    return SeedTest(len(maps), float(differences.mean()), low, high, p, p)


def _over_people(differences: F64, pids: Sequence[str]) -> PeopleTest | None:
    """`differences` [Q] of AP in 0..1, NaN where a query has no match."""
    valid = ~np.isnan(differences)
    if len(differences) != len(pids):
        raise InputError(
            f"there are {len(differences)} APs for {len(pids)} queries; they must be of the same test half"
        )
    names, person = np.unique(np.asarray(pids)[valid], return_inverse=True)
    if len(names) < 2:
        return None
    totals = np.bincount(person, weights=100 * differences[valid])
    counts = np.bincount(person)
    p, exact = flip_signs(totals)
    low, high = bootstrap_mean(totals, counts)
    mean = float(totals.sum() / counts.sum())
    return PeopleTest(int(valid.sum()), len(names), mean, low, high, p, p, exact)
