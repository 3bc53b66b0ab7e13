"""Scores as functions of arrays, against loops in float64."""

import numpy as np
import pytest

from dive_fast.quality import measures
from dive_fast.quality.measures import left_out_margins, nearest, nearest_within, unit


@pytest.fixture
def features():
    return unit(np.random.default_rng(0).normal(size=(23, 6)))


LABELS = np.array([*[0, 1, 2] * 7, 0, 3])


def test_an_image_is_left_out_of_its_own_centroid(features):
    expected = []
    for row, label in enumerate(LABELS):
        if (label == LABELS).sum() < 2:
            continue
        similar = {}
        for other in range(4):
            members = [f for n, f in enumerate(features.astype(np.float64)) if LABELS[n] == other and n != row]
            mean = np.sum(members, axis=0)
            similar[other] = features[row] @ mean / np.linalg.norm(mean)
        expected.append(similar[label] - max(value for other, value in similar.items() if other != label))
    np.testing.assert_allclose(left_out_margins(features, LABELS, 4), expected, atol=1e-6)


@pytest.mark.parametrize("block", [1, 50, 1 << 24])
def test_nearest_neighbours_whatever_the_block(features, block, monkeypatch):
    monkeypatch.setattr(measures, "_BLOCK", block)
    similar = features.astype(np.float64) @ features.T.astype(np.float64)
    best, at = nearest(features[:9], features[9:])
    np.testing.assert_array_equal(at, similar[:9, 9:].argmax(1))
    np.testing.assert_allclose(best, similar[:9, 9:].max(1), atol=1e-6)
    np.fill_diagonal(similar, -np.inf)
    np.testing.assert_allclose(nearest(features)[0], similar.max(1), atol=1e-6)
    similar[LABELS[:, None] != LABELS] = -np.inf
    np.testing.assert_allclose(np.sort(nearest_within(features, LABELS)), np.sort(similar.max(1)[:-1]), atol=1e-6)
