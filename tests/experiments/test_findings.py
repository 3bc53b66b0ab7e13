"""What a comparison shows and cannot show, in sentences: every order of ours, baseline and oracle."""

from dataclasses import replace

import pytest

from dive_fast.experiments import findings
from dive_fast.reid.comparison.records import Arm, Comparison, PeopleTest, SeedTest, Significance
from tests.support.refusals import refused

PEOPLE = PeopleTest(queries=240, people=24, mean=1.0, low=-3.0, high=5.0, p=0.5, p_holm=0.5, visible=5.6, exact=False)
SEEDS = SeedTest(seeds=3, mean=1.0, low=-7.0, high=9.0, p=0.5, p_holm=0.5, visible=12.0)


def arm(name, score, significance=None, gap=None):
    sizes = {"identities": 4, "visible": 8, "infrared": 8, "synthetic": 0, "without_infrared": 0}
    scores = {"map": [score], "rank1": [score], "minp": [score], "rank1_mean": score}
    return Arm(
        name, **sizes, **scores, map_mean=score, map_deviation=None, significance=significance, gap_closed_mean=gap
    )


def comparison(base, ours, oracle, seeds=(0,), people=PEOPLE, over_seeds=None, baseline="paired-only"):
    gap = (ours - base) / (oracle - base) if oracle > base else None
    found = Significance(over_seeds, people, "untested")
    arms = [arm("paired-only", base), arm("ours", ours, found, gap), arm("oracle", oracle)]
    what = {"dataset": "pocket", "protocol": {}, "direction": "", "queries": 240, "gallery": 480, "config": {}}
    return Comparison(arms, list(seeds), baseline, "oracle", **what)


def test_ours_between_baseline_and_oracle_closes_a_part_of_the_gap():
    text = findings.result(comparison(10, 16, 20))
    assert "10.0" in text and "16.0" in text and "20.0" in text
    assert "60 %" in text  # (16 - 10) / (20 - 10)
    assert "helps" in text


def test_above_the_oracle_no_part_of_the_gap_is_claimed():
    text = findings.result(comparison(10, 25, 20))
    assert "helps" in text and "25.0" in text
    assert "%" not in text


@pytest.mark.parametrize("ours", [8, 10])
def test_at_or_below_the_baseline_ours_does_not_help(ours):
    text = findings.result(comparison(10, ours, 20))
    assert "does not help" in text and "%" not in text


@pytest.mark.parametrize("ours", [8, 11, 15])
@pytest.mark.parametrize("oracle", [9, 10])
def test_without_a_gap_nothing_is_claimed(ours, oracle):
    text = findings.result(comparison(10, ours, oracle))
    assert "cannot tell" in text
    assert "not help" not in text and "%" not in text


@pytest.mark.parametrize(("low", "high", "chance"), [(-3, 5, True), (0.5, 5, False), (-5, -0.5, False)])
def test_an_interval_that_holds_zero_may_be_chance(low, high, chance):
    found = findings.limits(comparison(10, 16, 20, people=replace(PEOPLE, low=low, high=high)))
    assert ("chance" in found) == chance


def test_one_seed_says_nothing_of_other_trainings():
    text = findings.limits(comparison(10, 16, 20))
    assert "one seed cannot" in text.lower()
    assert "-3.0 to +5.0" in text and "24 people" in text
    alone = findings.limits(comparison(10, 16, 20, people=None))
    assert "one seed cannot" in alone.lower() and "95 %" not in alone


def test_more_seeds_have_an_interval():
    text = findings.limits(comparison(10, 16, 20, seeds=(0, 1, 2), over_seeds=SEEDS))
    assert "-7.0 to +9.0" in text and "3 seeds" in text and "-3.0 to +5.0" in text
    assert "one seed" not in text.lower()
    assert "3 seeds" in findings.result(comparison(10, 16, 20, seeds=(0, 1, 2)))


def test_a_comparison_without_a_baseline_is_refused():
    refused("baseline", findings.result, comparison(10, 16, 20, baseline=None))
