"""Re-ranking against the definitions of Zhong et al. (CVPR 2017), set by set in plain Python and float64."""

import math

import numpy as np
import pytest

from dive_fast.reid.evaluation import rerank as module
from dive_fast.reid.evaluation.rerank import RerankConfig, Reranked
from tests.support.refusals import refused


def rerank(query, gallery, config=RerankConfig()):  # noqa: B008
    return Reranked(query, gallery, config).rows(slice(None))


def brute_force(query, gallery, k1, k2, share):
    """With the three habits of the authors' code: a list starts with the image itself, > for >=, weights that sum to 1."""
    points = [list(map(float, point)) for point in [*query, *gallery]]
    total = len(points)
    distance = [[sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) for q in points] for p in points]
    distance = [[value / max(row) for value in row] for row in distance]
    ranking = [sorted(range(total), key=lambda j: (distance[i][j], j)) for i in range(total)]

    def near(i, k):
        return ranking[i][: k + 1]

    def mutual(i, k):
        return {j for j in near(i, k) if i in near(j, k)}

    vectors = []
    for i in range(total):
        expanded = set(mutual(i, k1))
        for j in mutual(i, k1):
            half = mutual(j, round(k1 / 2))
            if len(mutual(i, k1) & half) > 2 / 3 * len(half):
                expanded |= half
        weights = {j: math.exp(-distance[i][j]) for j in expanded}
        vectors.append([weights.get(j, 0) / sum(weights.values()) for j in range(total)])
    averaged = [
        [sum(vectors[j][c] for j in ranking[i][:k2]) / len(ranking[i][:k2]) for c in range(total)] for i in range(total)
    ]
    final = np.empty((len(query), len(gallery)))
    for i in range(len(query)):
        for g in range(len(gallery)):
            pairs = list(zip(averaged[i], averaged[len(query) + g], strict=True))
            jaccard = 1 - sum(map(min, pairs)) / sum(map(max, pairs))
            final[i, g] = (1 - share) * jaccard + share * distance[i][len(query) + g]
    return final


def points(seed, queries, gallery, size=5, people=6):
    """Clouds of people, so that neighbourhoods overlap."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, size))
    return tuple(centres[rng.integers(0, people, n)] + 0.4 * rng.normal(size=(n, size)) for n in (queries, gallery))


@pytest.mark.parametrize(
    ("seed", "queries", "gallery", "k1", "k2", "copies"),
    [
        (0, 9, 31, 20, 6, (1, 1)),
        (1, 20, 20, 7, 3, (1, 1)),
        (2, 1, 25, 5, 1, (1, 1)),
        (3, 4, 6, 20, 6, (1, 1)),
        (4, 6, 12, 7, 3, (2, 3)),
    ],
)
def test_equals_the_definitions(seed, queries, gallery, k1, k2, copies):
    """Copies tie at every border of a list; which of them is a neighbour decides the result."""
    query, found = (np.repeat(*side, axis=0) for side in zip(points(seed, queries, gallery), copies, strict=True))
    expected = brute_force(query, found, k1, k2, 0.3)
    np.testing.assert_allclose(rerank(query, found, RerankConfig(k1, k2)), expected, rtol=0, atol=1e-6)


def test_paper_s_settings_are_the_default():
    assert RerankConfig() == RerankConfig(k1=20, k2=6, share=0.3)


def test_small_chunks_change_nothing(monkeypatch):
    query, gallery = points(5, 23, 40)
    whole = rerank(query, gallery)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 200)
    parts = Reranked(query, gallery, RerankConfig())
    np.testing.assert_allclose(np.concatenate([parts.rows(slice(0, 9)), parts.rows(slice(9, 23))]), whole, atol=1e-6)


def test_single_precision_is_close():
    query, gallery = points(6, 30, 50)
    exact = rerank(query, gallery)
    np.testing.assert_allclose(rerank(query.astype(np.float32), gallery.astype(np.float32)), exact, atol=1e-5)


def test_identical_images_everywhere():
    np.testing.assert_allclose(rerank(np.ones((2, 3)), np.ones((4, 3))), 0, atol=1e-7)


def test_features_that_are_not_finite_are_named():
    refused("gallery features hold NaN or infinity", rerank, np.ones((2, 3)), np.full((2, 3), np.nan))
