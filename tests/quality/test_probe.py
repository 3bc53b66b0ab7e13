"""The modality probe against Newton's method, and that nobody is judged by a probe that knows them."""

import numpy as np

from dive_fast.quality import probe
from dive_fast.quality.measures import unit


def two_clouds(count=60, dims=5, apart=0.4, seed=0):
    random = np.random.default_rng(seed)
    infrared = np.arange(count) % 3 == 0  # unbalanced
    return unit(random.normal(size=(count, dims)) + apart * infrared[:, None]), infrared


def test_area_under_the_curve_counts_pairs_of_held_out_images():
    features, infrared = two_clouds(40)
    report = probe.held_out(features, infrared, np.arange(40))
    values = np.where(infrared, report.own, 1 - report.own)
    wins = [(a > b) + 0.5 * (a == b) for a in values[infrared] for b in values[~infrared]]
    assert abs(report.auc - np.mean(wins)) < 1e-12


def test_fit_is_the_optimum():
    """Against Newton's method on the loss as it is written down, its derivatives by hand."""
    features, infrared = two_clouds()
    inputs = np.c_[features.astype(np.float64) * np.sqrt(5), np.ones(60)]
    weight = np.where(infrared, 0.5 / infrared.sum(), 0.5 / (~infrared).sum())
    best = np.zeros(6)
    for _ in range(30):
        p = 1 / (1 + np.exp(-inputs @ best))
        slope = inputs.T @ (weight * (p - infrared)) + probe.DECAY * best
        best -= np.linalg.solve(inputs.T * (weight * p * (1 - p)) @ inputs + probe.DECAY * np.eye(6), slope)
    assert np.abs(slope).max() < 1e-12
    found = probe.fit(features, infrared)
    np.testing.assert_allclose(found.coef_[0], best, atol=1e-4)
    np.testing.assert_allclose(probe.probability_infrared(found, features), 1 / (1 + np.exp(-inputs @ best)), atol=1e-5)


def test_nobody_is_judged_by_a_probe_that_knows_them(monkeypatch):
    features, infrared = two_clouds(30)
    people = np.repeat(np.arange(10), 3)  # every third image is infrared: each person has one
    real_fit, seen = probe.fit, []

    def fit(rows, wanted):
        seen.append({tuple(row) for row in rows.tolist()})
        return real_fit(rows, wanted)

    monkeypatch.setattr(probe, "fit", fit)
    report = probe.held_out(features, infrared, people)
    assert len(seen) == probe.FOLDS
    held_out_in = [{k for k, rows in enumerate(seen) if tuple(row) not in rows} for row in features.tolist()]
    assert all(len(folds) == 1 for folds in held_out_in)
    assert all(len(set.union(*(held_out_in[n] for n in np.flatnonzero(people == p)))) == 1 for p in range(10))
    assert report.own.shape == (30,) and 0 <= report.auc <= 1


def test_every_fold_sees_both_modalities_when_two_people_have_infrared():
    features, _ = two_clouds(24)
    people = np.repeat(np.arange(12), 2)
    infrared = np.isin(people, [5, 10])  # in one fold, if people were dealt in the order of their names
    report = probe.held_out(features, infrared, people)
    assert np.isfinite(report.own).all()
