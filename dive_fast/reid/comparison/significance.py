"""Significance of an arm's difference to the baseline: over seeds, and over the test identities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dive_fast.environment.optional import optional
from dive_fast.reid.comparison.records import PeopleTest, SeedTest, Significance, Verdict
from dive_fast.types import InputError

F64 = NDArray[np.float64]
LEVEL, POWER = 0.05, 0.8
DRAWS = 9_999  # random sign flips, and bootstrap samples; up to 13 identities have fewer combinations: all are tried
_NEED = "a comparison's significance"
_BATCH_CELLS = 2_000_000  # values of resamples that are held at a time

Test = TypeVar("Test", SeedTest, PeopleTest)


def require_scipy() -> Any:
    """Returns `scipy.stats`; raises `DiveError` without scipy, so callers can check before training."""
    return optional("scipy.stats", _NEED)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 1979): bounds the chance of any false alarm by the level."""
    count = len(p_values)
    corrected = [0.0] * count
    worst = 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def paired_t(differences: ArrayLike) -> tuple[float, float, float]:
    """Returns the two-sided p of mean 0 and the mean's 95 % interval, of two or more paired differences [n]."""
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"a t-test needs at least two paired differences, got shape {list(values.shape)}")
    if np.ptp(values) == 0:  # scipy returns NaN without variance
        mean = float(values[0])
        return (1.0 if mean == 0 else 0.0), mean, mean
    found = require_scipy().ttest_1samp(values, 0)
    low, high = found.confidence_interval(1 - LEVEL)
    return float(found.pvalue), float(low), float(high)


def visible_difference(differences: ArrayLike, level: float = LEVEL) -> float:
    """Returns the true mean that a two-sided t-test of so many values with this deviation finds with power `POWER`.

    `differences` [n] are two or more paired differences; the test is at `level`. Of a noncentral t only the tail on the
    side of the mean counts: with this power the other has a chance below 1e-6.
    """
    values = np.asarray(differences, np.float64)
    freedom = len(values) - 1
    critical = require_scipy().t.ppf(1 - level / 2, freedom)
    shift = optional("scipy.special", _NEED).nctdtrinc(freedom, 1 - POWER, critical)
    return float(shift * values.std(ddof=1) / len(values) ** 0.5)


def flip_signs(totals: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, bool]:
    """Returns the two-sided p of a sum of `totals` [identities] when each total's sign is random, and whether it is exact.

    It is exact, over all combinations of signs, if these are at most `draws`. Otherwise the observed signs count as one more
    draw, so p is never 0.
    """
    values = np.asarray(totals, np.float64)
    found = require_scipy().permutation_test(
        (values,),
        lambda flipped, axis=-1: np.abs(flipped.sum(axis)),
        permutation_type="samples",
        n_resamples=draws,
        batch=max(1, _BATCH_CELLS // len(values)),
        alternative="greater",
        rng=np.random.default_rng([seed, 0]),
    )
    return float(found.pvalue), 2 ** len(values) <= draws


def bootstrap_mean(totals: ArrayLike, counts: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of sum(totals) / sum(counts) over resampled identities; both [identities]."""
    sums, sizes = np.asarray(totals, np.float64), np.asarray(counts, np.float64)
    found = require_scipy().bootstrap(
        (sums, sizes),
        lambda total, count, axis=-1: total.sum(axis) / count.sum(axis),
        paired=True,
        n_resamples=draws,
        batch=max(1, _BATCH_CELLS // len(sums)),
        confidence_level=1 - LEVEL,
        method="percentile",
        rng=np.random.default_rng([seed, 1]),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def against(
    baseline: str, maps: Mapping[str, Sequence[float]], aps: Mapping[str, F64], query_pids: Sequence[str]
) -> dict[str, Significance]:
    """Tests every arm but `baseline` against it, with p-values corrected over these arms.

    `maps` holds an arm's mAP in percent for each seed; `aps` an arm's AP in 0..1 for each query, float64 [Q], the mean over
    seeds and trials, NaN for a query without a match; `query_pids` [Q] are the queries' identities.
    """
    others = [name for name in maps if name != baseline]
    first = LEVEL / max(1, len(others))  # Holm's level for the smallest p, so for any arm whatever the others show
    seeds = _corrected({name: _over_seeds(maps[name], maps[baseline], first) for name in others})
    people = _corrected({name: _over_people(aps[name] - aps[baseline], query_pids, first) for name in others})
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


def _over_seeds(maps: Sequence[float], baseline: Sequence[float], level: float) -> SeedTest | None:
    if len(maps) < 2:
        return None
    differences = np.asarray(maps, np.float64) - np.asarray(baseline, np.float64)
    p, low, high = paired_t(differences)
    return SeedTest(len(maps), float(differences.mean()), low, high, p, p, visible_difference(differences, level))


def _over_people(differences: F64, pids: Sequence[str], level: float) -> PeopleTest | None:
    """`differences` [Q] of AP in 0..1, NaN where a query has no match; None for a single identity."""
    valid = ~np.isnan(differences)
    if len(differences) != len(pids):
        raise InputError(f"there are {len(differences)} APs for {len(pids)} queries")
    names, identity = np.unique(np.asarray(pids)[valid], return_inverse=True)
    if len(names) < 2:
        return None
    totals = np.bincount(identity, weights=100 * differences[valid])
    counts = np.bincount(identity)
    p, exact = flip_signs(totals)
    low, high = bootstrap_mean(totals, counts)
    mean = float(totals.sum() / counts.sum())
    visible = visible_difference(totals / counts.mean(), level)  # values whose mean is the mean over queries
    return PeopleTest(int(valid.sum()), len(names), mean, low, high, p, p, visible, exact)
