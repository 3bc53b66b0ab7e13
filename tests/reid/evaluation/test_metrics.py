"""The metrics against a brute-force reading of their definitions, and against cases worked out by hand."""

import math
import time

import numpy as np
import pytest

from dive_fast.reid.evaluation import metrics
from dive_fast.reid.evaluation.metrics import evaluate, score_trials, summary
from dive_fast.reid.evaluation.protocols import Trial
from tests.support.refusals import refused


def brute_force(distances, query_ids, gallery_ids, query_cams, gallery_cams, protocol, max_rank):
    """Plain Python, query by query, list by list."""
    cmc = [0] * max_rank
    precisions, penalties = [], []
    for q in range(len(query_ids)):
        ranking = sorted(range(len(gallery_ids)), key=lambda g: (distances[q][g], g))
        kept = []
        for g in ranking:
            if protocol == "sysu" and query_cams[q] == 3 and gallery_cams[g] == 2:
                continue
            if protocol == "llcm" and query_ids[q] == gallery_ids[g] and query_cams[q] == gallery_cams[g]:
                continue
            kept.append(gallery_ids[g])
        positives = [rank for rank, pid in enumerate(kept, 1) if pid == query_ids[q]]
        if not positives:
            continue
        order = list(dict.fromkeys(kept)) if protocol != "regdb" else kept
        for rank in range(max_rank):
            cmc[rank] += query_ids[q] in order[: rank + 1]
        precisions.append(sum(i / rank for i, rank in enumerate(positives, 1)) / len(positives))
        penalties.append(len(positives) / positives[-1])
    valid = len(precisions)
    return [c / valid for c in cmc], sum(precisions) / valid, sum(penalties) / valid, valid


def assert_brute_force(got, distances, ids, cams, protocol="sysu"):
    cmc, ap, inp, valid = brute_force(distances, *ids, *cams, protocol, len(got.cmc))
    np.testing.assert_allclose(got.cmc, cmc, rtol=0, atol=1e-12)
    assert (got.map, got.minp) == pytest.approx((ap, inp), abs=1e-12)
    assert got.valid_queries == valid


@pytest.mark.parametrize("protocol", ["sysu", "llcm", "regdb"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force(protocol, seed):
    rng = np.random.default_rng(seed)
    queries, gallery, people = int(rng.integers(1, 40)), int(rng.integers(1, 60)), int(rng.integers(2, 9))
    distances = rng.integers(0, 6, (queries, gallery)) / 4  # many ties
    ids = rng.integers(0, people, queries), rng.integers(0, people + 2, gallery)
    cams = rng.choice([3, 6], queries), rng.choice([1, 2, 3, 4], gallery)
    ids[1][0], ids[0][0], cams[0][0], cams[1][0] = 0, 0, 6, 1  # one query is surely valid
    got = evaluate(distances, *ids, *cams, protocol=protocol, max_rank=15)
    assert_brute_force(got, distances, ids, cams, protocol)


@pytest.mark.parametrize(
    ("case", "protocol", "cmc", "ap", "inp"),
    [
        # Ranking: B A B A for an A query; positives at ranks 2 and 4.
        (([[0.1, 0.2, 0.3, 0.4]], ["A"], ["B", "A", "B", "A"]), "regdb", [0, 1, 1, 1, 1], (1 / 2 + 2 / 4) / 2, 2 / 4),
        # Ranking: B B C A. Plain CMC hits at rank 4; with B counted once, at rank 3. AP sees all four.
        (([[0.1, 0.2, 0.3, 0.4]], [1], [2, 2, 3, 1], [6], [1, 1, 1, 1]), "sysu", [0, 0, 1, 1], 1 / 4, 1 / 4),
        (([[0.1, 0.2, 0.3, 0.4]], [1], [2, 2, 3, 1], [6], [1, 1, 1, 1]), "regdb", [0, 0, 0, 1], 1 / 4, 1 / 4),
        # The camera-3 query sees only the last item (AP 1); the camera-6 one sees A B A (AP (1 + 2/3) / 2).
        (
            ([[0.1, 0.2, 0.3]] * 2, [1, 1], [1, 2, 1], [3, 6], [2, 2, 4]),
            *("sysu", [1, 1, 1], (1 + (1 + 2 / 3) / 2) / 2, (1 + 2 / 3) / 2),
        ),
        # Item 0 is the query's person in the query's camera: gone. Item 1 is another person in it: stays.
        (([[0.1, 0.2, 0.3]], [1], [1, 2, 1], [4], [4, 4, 5]), "llcm", [0, 1], 1 / 2, 1 / 2),
    ],
)
def test_by_hand(case, protocol, cmc, ap, inp):
    result = evaluate(*case, protocol=protocol, max_rank=len(cmc))
    np.testing.assert_allclose(result.cmc, cmc)
    assert (result.map, result.minp) == pytest.approx((ap, inp))


def test_infinite_distances_rank_last():
    assert evaluate([[np.inf, 0.5]], [1], [1, 2], protocol="regdb", max_rank=2).cmc.tolist() == [0, 1]


GOOD = {"distances": [[0.1, 0.2]], "query_ids": [1], "gallery_ids": [1, 2], "query_cams": [6], "gallery_cams": [1, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": [[0.1, np.nan]]}, "NaN"),
        ({"distances": [0.1, 0.2]}, "shape"),
        ({"distances": np.zeros((0, 2)), "query_ids": []}, "empty"),
        ({"distances": np.zeros((1, 0)), "gallery_ids": [], "gallery_cams": []}, "empty"),
        ({"query_ids": [1, 2]}, "query_ids"),
        ({"gallery_ids": [[1, 2]]}, "gallery_ids"),
        ({"query_ids": ["1"]}, "same type"),
        ({"query_ids": [1.5]}, "integers or strings"),
        ({"query_cams": None}, "query_cams"),
        ({"gallery_cams": [1]}, "gallery_cams"),
        ({"gallery_cams": ["cam1", "cam2"]}, "integers"),
        ({"query_ids": [7]}, "no valid query"),
        ({"query_cams": [3], "gallery_cams": [2, 2]}, "no valid query"),  # SYSU's rule takes the match away
        ({"protocol": "market"}, "market"),
        ({"max_rank": 0}, "max_rank"),
    ],
)
def test_bad_input_is_named(change, message):
    refused(message, evaluate, **{**GOOD, **change})


def random_case(seed, queries=30, gallery=40, people=6):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, people, queries), rng.integers(0, people, gallery)
    cams = rng.choice([3, 6], queries), rng.choice([1, 2, 3, 4], gallery)
    return rng.random((queries, gallery)), ids, cams


@pytest.mark.parametrize("protocol", ["sysu", "llcm", "regdb"])
def test_trials_equal_a_matrix_of_their_own(protocol, monkeypatch):
    distances, ids, cams = random_case(3)
    monkeypatch.setattr(metrics, "CHUNK_CELLS", 7 * 40)  # trials' queries fall into several chunks
    rng = np.random.default_rng(4)
    trials = [Trial(rng.permutation(30)[:20], rng.permutation(40)[:17]), Trial(None, [5, 3, 8, 21]), Trial([7, 2, 29])]
    scores = score_trials(distances, *ids, *cams, trials=trials, protocol=protocol)
    got = [summary(one, protocol=protocol) for one in scores]
    for one, trial in zip(got, trials, strict=True):
        q = np.arange(30) if trial.query is None else np.asarray(trial.query)
        g = np.arange(40) if trial.gallery is None else np.asarray(trial.gallery)
        taken = [(side[0][q], side[1][g]) for side in (ids, cams)]
        assert_brute_force(one, distances[np.ix_(q, g)], *taken, protocol)


def test_scores_stand_in_the_order_of_the_trial():
    distances, ids, cams = random_case(5)
    whole, part = score_trials(distances, *ids, *cams, trials=[Trial(), Trial([7, 2, 29])])
    np.testing.assert_array_equal(part.ap, whole.ap[[7, 2, 29]])
    np.testing.assert_array_equal(part.first, whole.first[[7, 2, 29]])


def test_rows_are_asked_for_a_chunk_at_a_time(monkeypatch):
    distances, ids, cams = random_case(6)
    monkeypatch.setattr(metrics, "CHUNK_CELLS", 11 * 40)
    asked = []

    def rows(part):
        asked.append(range(30)[part])
        return distances[part]

    (scores,) = score_trials(rows, *ids, *cams, trials=[Trial()])
    assert asked == [range(11), range(11, 22), range(22, 30)]
    assert summary(scores).map == evaluate(distances, *ids, *cams).map


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.uint8])
@pytest.mark.parametrize("levels", [1, 3, 200])
def test_any_numbers_and_any_ties(dtype, levels):
    rng = np.random.default_rng(levels)
    _, ids, cams = random_case(levels)
    distances = rng.integers(0, levels, (30, 40)).astype(dtype)
    assert_brute_force(evaluate(distances, *ids, *cams), distances.tolist(), ids, cams)


def test_neighbouring_floats_are_not_ties():
    close = np.array([[1 + np.finfo(float).eps, 1]])  # one step apart: the second is nearer
    assert evaluate(close, [1], [1, 2], protocol="regdb").cmc[0] == 0
    assert evaluate(close.astype(np.float32), [1], [1, 2], protocol="regdb").cmc[0] == 1  # equal there


@pytest.mark.parametrize(
    ("trial", "message"), [(Trial([0, 0]), "different numbers"), (Trial(None, [2]), "0 to 1"), (Trial([-1]), "0 to 0")]
)
def test_bad_trials_are_named(trial, message):
    refused(message, score_trials, trials=[trial], **GOOD)


def test_the_arrays_given_stay_as_they_are():
    distances = np.zeros((3, 4), np.float32)  # all ties: the rows that are worked on get overwritten
    evaluate(distances, [1, 2, 1], [1, 2, 1, 2], protocol="regdb")
    assert not distances.any()


def test_far_faster_than_the_usual_loop():
    """The measure is 20 times, on a quiet machine; a fifth of that shows that nothing runs query by query."""
    rng = np.random.default_rng(0)
    queries, gallery = 150, 3000
    distances = rng.random((queries, gallery), np.float32)
    ids = rng.integers(0, 90, queries), rng.integers(0, 90, gallery)
    arguments = *ids, rng.choice([3, 6], queries), rng.choice([1, 2, 4, 5], gallery)
    evaluate(distances, *arguments)
    ours = math.inf
    for _ in range(5):  # the best of five: a busy machine may stop any of them for longer than it takes
        start = time.perf_counter()
        got = evaluate(distances, *arguments)
        ours = min(ours, time.perf_counter() - start)
    start = time.perf_counter()
    expected = brute_force(distances.tolist(), *[a.tolist() for a in arguments], "sysu", 20)
    theirs = time.perf_counter() - start
    assert got.map == pytest.approx(expected[1], abs=1e-12)
    assert theirs > 4 * ours
