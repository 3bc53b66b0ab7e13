"""Significance: p-values against closed forms and brute force, people and not queries counted."""

import itertools
import math

import numpy as np
import pytest

from dive_fast.reid.comparison.records import PeopleTest
from dive_fast.reid.comparison.significance import (
    against,
    bootstrap_mean,
    flip_signs,
    holm,
    paired_t,
    visible_difference,
)
from tests.support.refusals import refused


def test_t_test_of_three_seeds_by_hand():
    """With two degrees of freedom the t distribution has a closed form: P(|T| > t) = 1 - t / sqrt(t^2 + 2)."""
    p, low, high = paired_t([1.0, 2.0, 3.0])
    t = 2 * 3**0.5
    assert p == pytest.approx(1 - t / (t * t + 2) ** 0.5)
    quantile = 0.95 * (2 / (1 - 0.95**2)) ** 0.5  # the same form solved for t
    assert (low, high) == pytest.approx((2 - quantile / 3**0.5, 2 + quantile / 3**0.5))


def test_the_smallest_visible_difference_of_two_seeds_by_hand():
    """With one degree of freedom |T| > c means |Z + shift| > c |V|, with Z and V normal: power by a sum over V alone."""
    level = 0.05
    critical = np.tan(np.pi / 2 * (1 - level))  # Cauchy's quantile
    shift = visible_difference([0.0, 2**0.5], level) * 2**0.5  # their deviation is 1
    v = np.linspace(-8, 8, 400_001)
    density = np.exp(-(v**2) / 2) / (2 * np.pi) ** 0.5 * (v[1] - v[0])
    above = [0.5 * math.erfc((critical * abs(x) - shift) / 2**0.5) for x in v[::100]]
    assert np.sum(above * density[::100] * 100) == pytest.approx(0.8, abs=1e-3)


def test_the_smallest_visible_difference_against_tables_and_trials():
    """Cohen's table: 34 pairs find half a deviation with power 0.808, 33 with 0.796; many need z(0.975) + z(0.8) errors."""
    spread = np.resize([-1.0, 1.0], 34)
    assert 0.49 < visible_difference(spread) / spread.std(ddof=1) < 0.5
    assert visible_difference(spread[:32]) / spread[:32].std(ddof=1) > 0.5
    many = np.resize([-1.0, 1.0], 10_000)
    assert visible_difference(many) == pytest.approx((1.95996 + 0.84162) / 100, rel=1e-3)
    level, rng = 0.05 / 4, np.random.default_rng(0)
    few = np.array([-1.0, 0.0, 1.0, 2.0, -2.0])
    trials = rng.normal(visible_difference(few, level), few.std(ddof=1), (1_000, 5))
    found = np.mean([paired_t(trial)[0] < level for trial in trials])
    assert abs(found - 0.8) < 4 * (0.8 * 0.2 / 1_000) ** 0.5


def test_the_smallest_visible_difference_without_variance():
    assert visible_difference([2.0, 2.0]) == 0


def test_t_test_without_variance():
    assert paired_t([0.0, 0.0]) == (1.0, 0.0, 0.0)
    assert paired_t([2.0, 2.0]) == (0.0, 2.0, 2.0)
    refused(r"\[1\]", paired_t, [1.0])


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])  # 0.03 x 2 holds back 0.04 x 1
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def brute(totals):
    """Every combination of signs, one at a time."""
    reached = [
        abs(sum(s * t for s, t in zip(signs, totals, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(totals))
    ]
    return sum(value >= abs(sum(totals)) - 1e-9 for value in reached) / len(reached)


@pytest.mark.parametrize("totals", [[1.0, 2.0, 3.0], [0.3, -0.1, 0.2, 0.2, -0.05], [1.0, -1.0], [0.0, 0.0]])
def test_few_people_are_tested_exactly(totals):
    assert flip_signs(totals) == (pytest.approx(brute(totals)), True)


def test_many_people_are_tested_by_draws():
    totals = np.random.default_rng(1).normal(0.2, 1, 15)
    p, exact = flip_signs(totals)
    expected = brute(totals.tolist())
    assert not exact and 0.05 < expected < 0.6  # a p that could be missed either way
    assert abs(p - expected) < 4 * (expected * (1 - expected) / 9_999) ** 0.5
    assert flip_signs(totals) == (p, False)  # seeded
    assert flip_signs(np.ones(40))[0] == 1 / 10_000  # never 0


def test_without_a_difference_one_in_twenty_is_called_one():
    rng = np.random.default_rng(0)
    alarms = [flip_signs(rng.normal(0, 1, 10))[0] < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(alarms) < 0.08


def test_bootstrap_of_equal_people_is_that_of_a_mean():
    totals = np.random.default_rng(2).normal(3, 1, 200)
    low, high = bootstrap_mean(totals, np.ones(200))
    error = totals.std() / 200**0.5
    assert (low, high) == pytest.approx((totals.mean() - 1.96 * error, totals.mean() + 1.96 * error), abs=0.15 * error)
    # A person with more queries weighs more, wherever it is drawn: here the mean can only be 1.
    assert bootstrap_mean([1.0, 30.0], [1, 30]) == (1.0, 1.0)


def test_people_are_counted_and_not_their_queries():
    """Fifty queries each of three people, all better: as three coins that fell alike, not as 150."""
    pids = np.repeat(["a", "b", "c"], 50)
    base = np.random.default_rng(0).uniform(0.2, 0.6, 150)
    found = against("base", {"base": [40.0, 41.0], "ours": [45.0, 46.0]}, {"base": base, "ours": base + 0.05}, pids)
    assert found["ours"].people == PeopleTest(150, 3, *[pytest.approx(5)] * 3, 0.25, 0.25, pytest.approx(0), True)
    assert found["ours"].verdict == "not significant"  # the seeds' p is 0


def people(count, gain, seed=0):
    """APs of `count` people with four queries each, before and after a gain that differs a little from person to person."""
    rng = np.random.default_rng(seed)
    before = rng.uniform(0.2, 0.6, 4 * count)
    return before, before + np.repeat(gain + rng.normal(0, 0.01, count), 4), np.repeat(np.arange(count).astype(str), 4)


def test_verdicts_need_both_tests_and_one_direction():
    before, after, pids = people(30, 0.05)
    seeds = {"base": [40.0, 42.0, 41.0, 43.0, 40.5], "ours": [45.0, 47.1, 46.0, 48.2, 45.4]}
    better = against("base", seeds, {"base": before, "ours": after}, pids)["ours"]
    assert better.verdict == "better" and better.seeds.mean == pytest.approx(5.04)
    worse = against("ours", seeds, {"base": before, "ours": after}, pids)["base"]
    assert worse.verdict == "worse" and worse.people.p == better.people.p
    shaky = {**seeds, "ours": [45.0, 39.1, 46.0, 39.2, 45.4]}
    assert against("base", shaky, {"base": before, "ours": after}, pids)["ours"].verdict == "not significant"
    assert against("base", seeds, {"base": after, "ours": before}, pids)["ours"].verdict == "not significant"


def test_nothing_is_claimed_where_nothing_was_tested():
    before, after, pids = people(30, 0.05)
    one = against("base", {"base": [40.0], "ours": [45.0]}, {"base": before, "ours": after}, pids)["ours"]
    assert one.seeds is None and one.people is not None and one.verdict == "untested"
    alone = against("base", {"base": [40.0, 41.0], "ours": [45.0, 46.1]}, {"base": before, "ours": after}, ["a"] * 120)
    assert alone["ours"].people is None and alone["ours"].verdict == "untested"


def test_p_values_are_corrected_for_all_arms_and_queries_without_a_match_left_out():
    before, after, pids = people(12, 0.05)
    before[::4] = after[::4] = np.nan
    maps = {"base": [40.0, 42.0, 41.0], "ours": [45.0, 47.1, 46.0], "grey": [39.0, 42.5, 40.2]}
    aps = {"base": before, "ours": after, "grey": np.roll(before, 8)}
    found = against("base", maps, aps, pids)
    assert found["ours"].people.queries == 36 and found["ours"].people.people == 12
    assert found["ours"].people.mean == pytest.approx(100 * np.nanmean(after - before))
    for kind in ("seeds", "people"):
        tests = [getattr(found[name], kind) for name in ("ours", "grey")]
        assert [t.p_holm for t in tests] == pytest.approx(holm([t.p for t in tests]))
    assert found["ours"].seeds.p_holm == 2 * found["ours"].seeds.p
    differences = np.subtract(maps["ours"], maps["base"])
    assert found["ours"].seeds.visible == visible_difference(differences, 0.05 / 2)
    # Each person has three queries with a match, so a person counts by the mean of three differences.
    persons = 100 * np.nanmean((after - before).reshape(12, 4), axis=1)
    assert found["ours"].people.visible == pytest.approx(visible_difference(persons, 0.05 / 2))
    refused("48 APs for 47 queries", against, "base", maps, aps, pids[:-1])
