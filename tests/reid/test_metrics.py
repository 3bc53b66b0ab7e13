"""The metrics against a brute-force reading of their definitions, and against cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dive_fast.reid.metrics import evaluate
from dive_fast.types import InputError


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


@pytest.mark.parametrize("protocol", ["sysu", "llcm", "regdb"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force(protocol, seed):
    rng = np.random.default_rng(seed)
    queries, gallery, people = int(rng.integers(1, 40)), int(rng.integers(1, 60)), int(rng.integers(2, 9))
    distances = rng.integers(0, 6, (queries, gallery)) / 4  # many ties
    ids = rng.integers(0, people, queries), rng.integers(0, people + 2, gallery)
    cams = rng.choice([3, 6], queries), rng.choice([1, 2, 3, 4], gallery)
    ids[1][0], ids[0][0], cams[0][0], cams[1][0] = 0, 0, 6, 1  # one query is surely valid
    expected = brute_force(distances, *ids, *cams, protocol, 15)
    got = evaluate(distances, *ids, *cams, protocol=protocol, max_rank=15)
    np.testing.assert_allclose(got.cmc, expected[0], rtol=0, atol=1e-12)
    assert got.map == pytest.approx(expected[1], abs=1e-12)
    assert got.minp == pytest.approx(expected[2], abs=1e-12)
    assert got.valid_queries == expected[3]


def test_queries_in_several_chunks_equal_one_chunk(monkeypatch):
    rng = np.random.default_rng(0)
    arguments = rng.random((30, 20)), rng.integers(0, 5, 30), rng.integers(0, 5, 20)
    whole = evaluate(*arguments, protocol="regdb")
    monkeypatch.setattr("dive_fast.reid.metrics._CHUNK_CELLS", 20 * 7)
    parts = evaluate(*arguments, protocol="regdb")
    assert (parts.map, parts.minp, parts.valid_queries) == (whole.map, whole.minp, whole.valid_queries)
    np.testing.assert_array_equal(parts.cmc, whole.cmc)


def test_by_hand_regdb():
    # Ranking: B A B A for an A query; positives at ranks 2 and 4.
    result = evaluate([[0.1, 0.2, 0.3, 0.4]], ["A"], ["B", "A", "B", "A"], protocol="regdb", max_rank=5)
    np.testing.assert_allclose(result.cmc, [0, 1, 1, 1, 1])
    assert result.map == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert result.minp == pytest.approx(2 / 4)


def test_by_hand_sysu_counts_a_gallery_identity_once():
    # Ranking: B B C A. Plain CMC hits at rank 4; with B counted once, at rank 3. AP sees all four.
    arguments = [[0.1, 0.2, 0.3, 0.4]], [1], [2, 2, 3, 1], [6], [1, 1, 1, 1]
    np.testing.assert_allclose(evaluate(*arguments, protocol="sysu", max_rank=4).cmc, [0, 0, 1, 1])
    np.testing.assert_allclose(evaluate(*arguments, protocol="regdb", max_rank=4).cmc, [0, 0, 0, 1])
    assert evaluate(*arguments, protocol="sysu").map == pytest.approx(1 / 4)


def test_by_hand_sysu_camera_3_does_not_see_camera_2():
    distances = [[0.1, 0.2, 0.3]] * 2
    result = evaluate(distances, [1, 1], [1, 2, 1], [3, 6], [2, 2, 4], protocol="sysu", max_rank=3)
    # The camera-3 query sees only the last item (AP 1); the camera-6 one sees A B A (AP (1 + 2/3) / 2).
    assert result.map == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)
    assert result.minp == pytest.approx((1 + 2 / 3) / 2)
    np.testing.assert_allclose(result.cmc, [1, 1, 1])


def test_by_hand_llcm_removes_same_person_same_camera_only():
    # Item 0 is the query's person in the query's camera: gone. Item 1 is another person in it: stays.
    result = evaluate([[0.1, 0.2, 0.3]], [1], [1, 2, 1], [4], [4, 4, 5], protocol="llcm", max_rank=2)
    np.testing.assert_allclose(result.cmc, [0, 1])
    assert result.map == pytest.approx(1 / 2)


def test_equal_distances_rank_in_gallery_order():
    assert evaluate([[1.0, 1.0]], [5], [5, 6], protocol="regdb").cmc[0] == 1
    assert evaluate([[1.0, 1.0]], [5], [6, 5], protocol="regdb").cmc[0] == 0


def test_a_query_without_its_person_adds_nothing():
    some = evaluate([[0.1, 0.2], [0.1, 0.2]], [1, 9], [1, 2], [6, 6], [1, 1], max_rank=2)
    assert some.valid_queries == 1
    assert some.map == 1 and some.cmc[0] == 1


def test_fewer_identities_than_ranks():
    result = evaluate([[0.2, 0.1]], [1], [1, 2], [6], [1, 1], max_rank=20)
    assert result.cmc.shape == (20,)
    np.testing.assert_allclose(result.cmc, [0] + [1] * 19)


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
        ({"protocol": "market"}, "market"),
        ({"max_rank": 0}, "max_rank"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(InputError, match=message):
        evaluate(**{**GOOD, **change})


def test_only_rule_removed_positives_means_no_valid_query():
    with pytest.raises(InputError, match="no valid query"):
        evaluate([[0.1, 0.2]], [1], [1, 2], [3], [2, 2], protocol="sysu")
