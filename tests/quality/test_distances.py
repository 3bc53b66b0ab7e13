"""FID and KID against scipy, naive sums and closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from dive_fast.quality.distances import Moments, frechet, kid, moments, polynomial_mmd

RANDOM = np.random.default_rng(0)


def test_moments_are_numpys():
    rows = RANDOM.normal(size=(40, 7)).astype(np.float32)
    found = moments(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0, dtype=np.float64))
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(np.float64), rowvar=False), atol=1e-12)


def test_frechet_equals_the_general_matrix_root():
    a, b = (moments(RANDOM.normal(size=(200, 9)) @ RANDOM.normal(size=(9, 9)) + n) for n in (0, 1))
    root = sqrtm(a.covariance @ b.covariance)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-9)


def test_frechet_closed_forms():
    variances = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 0.25])
    a, b = (Moments(10, np.zeros(3), np.diag(v)) for v in variances)
    assert frechet(a, b) == pytest.approx(1 + 4 + 0.25)  # sum of (sqrt a - sqrt b)^2, one direction empty
    shifted = Moments(10, np.array([3.0, 0, 4.0]), a.covariance)
    assert frechet(a, shifted) == pytest.approx(25)
    few = moments(RANDOM.normal(size=(5, 50)))  # rank 4 of 50
    assert abs(frechet(few, few)) < 1e-12 * np.trace(few.covariance)
    nothing = Moments(10, np.zeros(3), np.zeros((3, 3)))
    assert frechet(nothing, a) == pytest.approx(5)


def test_polynomial_mmd_is_the_sum_over_pairs():
    x, y = RANDOM.normal(size=(6, 4)), RANDOM.normal(size=(9, 4)) + 0.3
    k = lambda a, b: (a @ b / 4 + 1) ** 3  # noqa: E731
    xx = np.mean([k(x[i], x[j]) for i in range(6) for j in range(6) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert polynomial_mmd(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_kid_of_shifted_gaussians_is_the_closed_form():
    """In one dimension (x x' + 1)^3 compares the first three moments: 3 d1^2 + 3 d2^2 + d3^2."""
    x, y = RANDOM.normal(size=(6_000, 1)), RANDOM.normal(1, 1, size=(12_000, 1))
    found = kid(x, y)
    assert found.blocks == 12
    assert found.error is not None and 0 < found.error < 1
    assert abs(found.value - (3 * 1 + 3 * 1 + 16)) < 4 * found.error


def test_kid_of_one_source_is_about_zero_and_its_error_is_the_spread():
    values = [kid(RANDOM.normal(size=(200, 8)), RANDOM.normal(size=(300, 8))) for _ in range(60)]
    spread = np.std([v.value for v in values], ddof=1)
    assert abs(np.mean([v.value for v in values])) < 4 * spread / np.sqrt(60)
    assert np.mean([v.error for v in values]) == pytest.approx(spread, rel=0.35)
    assert {v.blocks for v in values} == {10}


def test_kid_of_few_images():
    few = kid(RANDOM.normal(size=(5, 3)), RANDOM.normal(size=(400, 3)))
    assert few.blocks == 2 and few.error is not None
    assert kid(RANDOM.normal(size=(3, 3)), RANDOM.normal(size=(4, 3))).error is None
