"""The membership test's numbers, by hand and by scikit-learn."""

import numpy as np
import pytest

from benchmarks.membership import auc, interval


def test_auc_counts_pairs_and_its_interval_covers_it():
    assert auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == 3.5 / 4
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 80), rng.normal(0, 1, 60)
    labels = [1] * len(members) + [0] * len(others)
    assert auc(members, others) == pytest.approx(metrics.roc_auc_score(labels, [*members, *others]))
    low, high = interval(members, others)
    assert low < auc(members, others) < high < low + 0.25  # a standard error is about 0.048
