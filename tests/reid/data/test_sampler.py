"""Batches hold what they promise, for every step, and the same for the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from dive_fast.reid.data.dataset import Table
from dive_fast.reid.data.sampler import PairSampler
from dive_fast.reid.training.config import ReidConfig
from tests.support.refusals import refused


def city(people: int = 6, visible: int = 5, infrared: int = 4, without: tuple[int, ...] = ()):
    """Labels and modality of images; the people in `without` have no infrared."""
    labels, is_infrared = [], []
    for person in range(people):
        for flag, count in ((False, visible), (True, 0 if person in without else infrared)):
            labels += [person] * count
            is_infrared += [flag] * count
    return np.array(labels), np.array(is_infrared)


def sampler(labels, infrared, synthetic=None, names=None, **options):
    pids = tuple(names or map(str, range(labels.max() + 1)))
    counted = np.zeros(len(labels), bool) if synthetic is None else synthetic
    table = Table(torch.from_numpy(labels), torch.from_numpy(infrared), torch.from_numpy(counted), pids)
    return PairSampler(table, ReidConfig(**{"identities": 3, "per_modality": 2, **options}), counted)


@pytest.mark.parametrize("step", [0, 1, 2, 17, 400])
def test_p_identities_k_of_each_modality(step):
    labels, infrared = city()
    rows = sampler(labels, infrared).batch(step)
    assert rows.shape == (12,) and len(set(rows)) == 12
    counts = Counter(zip(labels[rows], infrared[rows], strict=True))
    assert len(counts) == 6 and set(counts.values()) == {2}


def test_every_identity_once_per_pass():
    labels, infrared = city(people=6)
    pairs = sampler(labels, infrared)
    for first in (0, 2, 40):
        seen = Counter(labels[np.concatenate([pairs.batch(first), pairs.batch(first + 1)])])
        assert set(seen.values()) == {4} and len(seen) == 6


def test_seed_decides_and_steps_are_independent():
    labels, infrared = city()
    first, again, other = (sampler(labels, infrared, seed=s) for s in (3, 3, 4))
    forward = [first.batch(step) for step in range(8)]
    backward = [again.batch(step) for step in reversed(range(8))][::-1]
    assert all((a == b).all() for a, b in zip(forward, backward, strict=True))
    assert any((a != other.batch(step)).any() for step, a in enumerate(forward))


def test_few_images_repeat():
    labels, infrared = city(visible=1, infrared=1)
    assert len(sampler(labels, infrared, per_modality=3).batch(0)) == 18


def test_epoch_is_as_long_as_the_larger_modality():
    labels, infrared = city(people=6, visible=5, infrared=4)
    assert sampler(labels, infrared).steps_per_epoch == 5  # 30 visible images, 6 in a batch


def test_missing_infrared_is_refused_by_default_and_who_is_dropped_is_named():
    refused("7 identities, got 6", sampler, *city(), identities=7)
    labels, infrared = city(without=(1, 4))
    refused(r"2 of 6 identities.*b, e", sampler, labels, infrared, names="abcdef")
    pairs = sampler(labels, infrared, missing="drop", names="abcdef")
    assert pairs.dropped == ("b", "e")
    assert not {1, 4} & set(labels[np.concatenate([pairs.batch(i) for i in range(9)])])


def test_missing_visible_fills_up_with_visible_images():
    labels, infrared = city(without=(0, 1, 2, 3, 4))
    pairs = sampler(labels, infrared, missing="visible", identities=6)
    rows = pairs.batch(0)
    counts = Counter(zip(labels[rows], infrared[rows], strict=True))
    assert all(counts[person, False] == 4 for person in range(5))
    assert counts[5, False] == counts[5, True] == 2


def test_missing_visible_does_not_excuse_missing_photos():
    labels, infrared = city()
    keep = (labels != 2) | infrared
    refused("no visible: 2", sampler, labels[keep], infrared[keep], missing="visible")


def test_share_of_synthetic_identities():
    labels, infrared = city(people=10)
    synthetic = (labels >= 7) & infrared
    pairs = sampler(labels, infrared, identities=4, synthetic=synthetic, synthetic_fraction=0.25)
    for step in range(20):
        people = set(labels[pairs.batch(step)])
        assert len(people) == 4 and len([p for p in people if p >= 7]) == 1
    refused("synthetic_fraction", sampler, labels, infrared, identities=4, synthetic=synthetic, synthetic_fraction=1.0)


def test_the_share_follows_its_schedule():
    labels, infrared = city(people=10)
    synthetic = (labels >= 6) & infrared
    options = {"identities": 4, "synthetic": synthetic, "steps": 40, "synthetic_schedule": ((0, 0.5), (1, 0))}
    pairs, again = (sampler(labels, infrared, **options) for _ in range(2))
    made = [sum(p >= 6 for p in set(labels[pairs.batch(step)])) for step in range(40)]
    assert made == [round(4 * 0.5 * (1 - step / 39)) for step in range(40)]
    assert [made.count(n) for n in (2, 1, 0)] == [10, 20, 10]  # 2.0 to 1.5, to 0.5, to 0: a half rounds to the even
    assert all((pairs.batch(step) == again.batch(step)).all() for step in reversed(range(40)))
    seen = Counter(p for step in range(10, 22) for p in set(labels[pairs.batch(step)]))  # 12 of 3 real, 1 synthetic
    assert seen == {**dict.fromkeys(range(6), 6), **dict.fromkeys(range(6, 10), 3)}


def test_a_schedule_that_asks_for_too_many_is_refused_before_any_step():
    labels, infrared = city(people=10)
    options = {"identities": 4, "steps": 40, "synthetic_schedule": ((0, 0), (1, 1))}
    refused("3 synthetic identities.* 2", sampler, labels, infrared, synthetic=(labels >= 8) & infrared, **options)
