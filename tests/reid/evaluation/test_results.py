"""A stored result is taken over only when it is one of this protocol, and its means are those of its trials."""

import json

import pytest

from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.reid.evaluation.results import SCORES, ReidResult, over_trials, read_result
from dive_fast.types import to_dict
from tests.support.refusals import refused

PROTOCOL = Protocol("sysu", trials=2)


def stored(**changes):
    """What a file holds of a result with the scores 40 and 60 in both of its trials' numbers."""
    whole = ReidResult(
        dataset="sysu:old",
        protocol=PROTOCOL.metadata(),
        rule="sysu",
        direction="infrared to visible",
        queries=4,
        gallery=8,
        valid_queries=4,
        flip=True,
        checkpoint="ab",
        **over_trials({name: [40.0, 60.0] for name in SCORES}),
    )
    return json.loads(json.dumps({**to_dict(whole), **changes}))


def test_a_stored_result_comes_back_under_the_name_of_today():
    found = read_result(stored(), "result.json", PROTOCOL, "sysu:new")
    assert to_dict(found) == stored(dataset="sysu:new")
    assert (found.map, found.map_deviation) == (50.0, pytest.approx(200**0.5))


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": {}},
        {"protocol": 5},
        {"protocol": Protocol("pocket").metadata()},
        {"direction": "x" * 300},
        {"rerank": {"k1": 20}},
        {"queries": "4"},
        {"map": 51.0},
        {"per_trial": {}},
        {"per_trial": {name: ["40", 60.0] for name in SCORES}},
        {"per_trial": {name: [50.0] for name in SCORES}},
        {"per_trial": {name: [40.0, 60.0] for name in SCORES[1:]}},
    ],
    ids=str,
)
def test_what_no_evaluation_wrote_is_refused(changes):
    refused("result.json", read_result, stored(**changes), "result.json", PROTOCOL, "sysu:new")


def test_a_result_of_other_distances_is_refused():
    refused("result.json", read_result, stored(), "result.json", PROTOCOL, "sysu:new", RerankConfig())
