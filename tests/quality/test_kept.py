"""Identity kept: rates and intervals against hand counts and simulation, what a scorer must not have seen, the command."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dive_fast.data.sets import SetSpec, read_set
from dive_fast.quality.kept import Kept, kept_difference, kept_of_features, kept_of_samples, wilson
from dive_fast.quality.reid_extractor import open_extractor
from dive_fast.types import Sample
from tests.support.cli import NEXT
from tests.support.quality import PIDS, save
from tests.support.refusals import refused

Z, POWER = 1.959963985, 0.841621234  # quantiles of the normal distribution at 97.5 % and 80 %


def counted(hits: list[int], images: list[int], gallery: int | None = None) -> Kept:
    """A run in which so many of each identity's images look like the identity, and the rest like the next one."""
    axes = np.eye(gallery or len(hits), dtype=np.float32)
    rows, pids = [], []
    for n, (found, size) in enumerate(zip(hits, images, strict=True)):
        rows += [axes[n]] * found + [axes[(n + 1) % len(axes)]] * (size - found)
        pids += [f"{n:04d}"] * size
    return kept_of_features(np.stack(rows), pids, axes, [f"{n:04d}" for n in range(len(axes))])


def wilson_by_roots(value: float, count: float) -> tuple[float, float]:
    """Where (value - p)^2 = Z^2 p (1 - p) / count."""
    low, high = sorted(np.roots([1 + Z**2 / count, -2 * value - Z**2 / count, value**2]))
    return low, high


def test_rates_by_hand():
    gallery = np.array([[1, 0], [0, 3], [0, 1]], np.float32)
    # Long rows weigh no more than short ones: by sums, the mean of "a" would be nearer to "b".
    query = np.array([[1, 0.1], [20, 100], [0, 1], [0.2, 1]], np.float32)
    kept = kept_of_features(query, ["a", "a", "b", "b"], gallery, ["a", "b", "b"])
    assert (kept.images, kept.identities, kept.gallery_identities) == (4, 2, 2)
    assert [(one.pid, one.images, one.found, one.mean_found) for one in kept.each] == [
        ("a", 2, 1, True),
        ("b", 2, 2, True),
    ]
    assert (kept.by_image.value, kept.by_identity.value) == (0.75, 1)
    # Residuals -1/4 and 1/4: variance 1/16, that of three independent images, 3/16 / 3.
    assert (kept.by_image.low, kept.by_image.high) == pytest.approx(wilson_by_roots(0.75, 3))
    assert kept.by_identity.low == pytest.approx(2 / (2 + Z**2)) and kept.by_identity.high == 1


def test_wilson_at_the_ends():
    for value in (0.0, 1.0):
        found = wilson(value, 10)
        assert (found.low, found.high) == pytest.approx(wilson_by_roots(value, 10), abs=1e-9)
        assert 0 <= found.low <= found.high <= 1


def test_copies_of_images_tell_nothing():
    once, often = counted([1, 0, 2, 2], [2, 2, 2, 2]), counted([10, 0, 20, 20], [20, 20, 20, 20])
    assert once.by_image == often.by_image
    assert counted([4, 4], [4, 4]).by_image == counted([1, 1], [1, 1]).by_image


@pytest.mark.slow
def test_the_interval_holds_for_images_that_belong_together():
    random = np.random.default_rng(0)
    identities, each, runs = 40, 8, 400
    held = naive = 0
    for _ in range(runs):
        hits = random.binomial(each, random.beta(0.5, 0.5, identities))  # expectation 1/2
        found = counted(hits.tolist(), [each] * identities).by_image
        held += found.low <= 0.5 <= found.high
        low, high = wilson_by_roots(found.value, identities * each)
        naive += low <= 0.5 <= high
    error = (0.95 * 0.05 / runs) ** 0.5
    assert abs(held / runs - 0.95) < 3 * error
    assert naive / runs < 0.8


def test_true_features_are_found_and_shuffled_ones_by_chance():
    random = np.random.default_rng(1)
    pids = [f"{n:04d}" for n in range(50) for _ in range(6)]
    identity = random.normal(size=(50, 32)).repeat(6, axis=0)
    query, gallery = ((identity + 0.1 * random.normal(size=identity.shape)).astype(np.float32) for _ in range(2))
    kept = kept_of_features(query, pids, gallery, pids)
    assert (kept.by_image.value, kept.by_identity.value) == (1, 1)
    assert kept.by_image.low < 1 and kept.by_image.high == 1
    shuffled = kept_of_features(query, random.permutation(pids).tolist(), gallery, pids)
    assert shuffled.by_image.low < 1 / 50 < shuffled.by_image.high < 0.1
    assert shuffled.by_identity.value < 0.15


def test_the_difference_by_hand():
    found = kept_difference(counted([2, 2, 1], [2, 2, 2]), counted([2, 1, 0], [2, 2, 2]))
    # By image 0, 1/2, 1/2; two identities more, of a half loss and a half gain in all: mean 1/5, of squares 1.5 / 5.
    error = ((0.3 - 0.04) / 5) ** 0.5
    assert found.identities == 3
    assert found.by_image.value == pytest.approx(1 / 3)
    assert (found.by_image.low, found.by_image.high) == pytest.approx((0.2 - Z * error, 0.2 + Z * error))
    assert found.by_image.smallest == pytest.approx((Z + POWER) * error)


def test_a_difference_needs_no_pairs_of_images():
    first = counted([3, 1, 4, 2], [4, 4, 4, 4])
    few, many = counted([2, 1, 0, 1], [2, 2, 2, 2]), counted([10, 5, 0, 5], [10, 10, 10, 10])
    assert kept_difference(first, few) == kept_difference(first, many)
    there, back = kept_difference(first, few).by_image, kept_difference(few, first).by_image
    assert (there.value, there.low) == pytest.approx((-back.value, -back.high))


def test_equal_runs_still_have_an_interval():
    kept = counted([2, 2], [2, 2])
    same = kept_difference(kept, kept).by_identity
    assert same.value == 0 and same.low == pytest.approx(-same.high) and same.smallest > same.high > 0


@pytest.mark.slow
def test_the_smallest_difference_is_shown_in_four_of_five_runs():
    random, identities, runs, loss = np.random.default_rng(2), 100, 200, 0.135
    shown = []
    smallest = []
    for _ in range(runs):
        first, changed = random.random(identities) < 0.5, random.random(identities)
        second = np.where(first, changed > 0.25 + loss, changed < 0.25 - loss)
        found = kept_difference(*(counted(run.astype(int).tolist(), [1] * identities) for run in (first, second)))
        shown.append(found.by_image.low > 0)
        smallest.append(found.by_image.smallest)
    assert np.mean(smallest) == pytest.approx(loss, abs=0.005)
    assert abs(np.mean(shown) - 0.8) < 3 * (0.8 * 0.2 / runs) ** 0.5


def test_what_cannot_be_searched_is_refused():
    rows = np.eye(2, dtype=np.float32)
    refused("1 of 2 identities have no true image .*c", kept_of_features, rows, ["a", "c"], rows, ["a", "b"])
    refused("no query", kept_of_features, rows[:0], [], rows, ["a", "b"])
    refused("one identity", kept_of_features, rows, ["a", "a"], rows, ["a", "a"])
    refused("differ in their identities", kept_difference, counted([1, 1], [1, 1]), counted([1, 1, 1], [1, 1, 1]))
    refused("2 among 3", kept_difference, counted([1, 1], [1, 1]), counted([1, 1], [1, 1], gallery=3))


@pytest.fixture
def sides(real: SetSpec) -> tuple[list[Sample], list[Sample]]:
    """One infrared image a camera of everybody but the last, and the other infrared images of all."""
    infrared = [sample for sample in read_set(real) if sample.modality == "ir"]
    query = [sample for sample in infrared if sample.path.stem == "0001" and sample.pid != PIDS[-1]]
    return query, [sample for sample in infrared if sample.path.stem != "0001"]


def test_images_are_searched_by_camera_in_the_whole_gallery(checkpoint, sides):
    query, gallery = sides
    found = kept_of_samples(checkpoint, query, gallery, progress=False)
    assert list(found) == ["all", "cam3", "cam6"]
    assert [kept.images for kept in found.values()] == [8, 4, 4]
    assert all((kept.identities, kept.gallery_identities) == (4, 5) for kept in found.values())
    assert found["all"].by_image.value == (found["cam3"].by_image.value + found["cam6"].by_image.value) / 2
    net = open_extractor(checkpoint)
    rows = [net.features(samples, tone=False).identity.astype(np.float64) for samples in sides]
    first = (rows[0] @ rows[1].T).argmax(axis=1)
    hits = [gallery[at].pid == sample.pid for at, sample in zip(first, query, strict=True)]
    assert found["all"].by_image.value == np.mean(hits)
    assert list(kept_of_samples(checkpoint, query[:1], gallery, progress=False)) == ["all"]


def test_a_scorer_that_saw_them_is_refused(make_net, sides):
    refused("trained on 1 synthetic images", kept_of_samples, make_net(synthetic=1), *sides)
    refused("does not say", kept_of_samples, make_net(synthetic=None), *sides)
    seen = make_net(pids=["x", "y", PIDS[-1]])  # a gallery identity that no query has
    refused(f"trained or chosen on 1 identities .*{PIDS[-1]}", kept_of_samples, seen, *sides)
    assert kept_of_samples(seen, *sides, progress=False, other_people=True)["all"].images == 8


def test_sides_that_do_not_fit_are_refused(checkpoint, sides, real):
    query, gallery = sides
    visible = [sample for sample in read_set(real) if sample.modality == "rgb"]
    refused("one modality at a time", kept_of_samples, checkpoint, query, visible)
    refused("listed more than once", kept_of_samples, checkpoint, query, [*gallery, query[0]])
    refused("1 of 4", kept_of_samples, checkpoint, query, [s for s in gallery if s.pid != PIDS[0]])


@pytest.mark.slow
def test_the_command(run, step, dataset, checkpoint, real, only_rgb, tmp_path):
    line = f"identity-kept {dataset} --checkpoint {checkpoint} --device cpu --real"
    rows = step(f"{line} sysu:{real.root}")["rows"]
    expected = [(side, camera) for side in ("rgb", "ir") for camera in ("all", *_cameras(side))]
    assert [(row["side"], row["camera"]) for row in rows] == expected
    assert [row["images"] for row in rows] == [20, 10, 10] * 2
    assert "each" not in rows[0] and rows[0]["by_image"]["low"] <= rows[0]["by_image"]["value"]
    code, out, error = run(f"{line} folder:{only_rgb.root}")
    assert code == 0 and "ir is left out" in error and len(out.partition(NEXT)[0].splitlines()) == 4
    for pid in ("0001", "0002"):
        save(tmp_path / "few" / pid / "1.png", Image.new("RGB", (32, 64)))
    code, _, error = run(f"{line} folder:{tmp_path / 'few'}")
    assert code == 2 and "3 of 5 identities" in error


def _cameras(side: str) -> tuple[str, str]:
    return ("cam1", "cam2") if side == "rgb" else ("cam3", "cam6")
