"""Losses against loops over anchors and pairs, written from the papers."""

from __future__ import annotations

import math

import pytest
import torch

from dive_fast.reid.training.losses import batch_hard_triplet, squared_difference_triplet, weighted_triplet


def batch(seed: int, size: int = 12, width: int = 5, people: int = 4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % people
    return torch.randn(size, width, generator=generator, dtype=torch.float64), labels


def distance(a, b):
    return math.sqrt(max(1e-12, sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("margin", [0.0, 0.3, 4.0])
def test_batch_hard(seed, margin):
    features, labels = batch(seed)
    expected = []
    for i in range(len(labels)):
        others = [(distance(features[i], features[j]), bool(labels[i] == labels[j])) for j in range(len(labels))]
        hardest = max(d for d, same in others if same) - min(d for d, same in others if not same)
        expected.append(max(0.0, margin + hardest))
    assert batch_hard_triplet(features, labels, margin).item() == pytest.approx(sum(expected) / len(expected), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss", "power"),
    [(weighted_triplet, lambda x: x), (squared_difference_triplet, lambda x: math.copysign(x * x, x))],
)
def test_weighted_and_squared_difference(loss, power, seed):
    features, labels = batch(seed)
    expected = []
    for i in range(len(labels)):
        far = [distance(features[i], f) for f, y in zip(features, labels, strict=True) if y == labels[i]]
        near = [distance(features[i], f) for f, y in zip(features, labels, strict=True) if y != labels[i]]
        positive = sum(math.exp(d) * d for d in far) / sum(math.exp(d) for d in far)
        negative = sum(math.exp(-d) * d for d in near) / sum(math.exp(-d) for d in near)
        expected.append(math.log1p(math.exp(power(positive - negative))))
    assert loss(features, labels).item() == pytest.approx(sum(expected) / len(expected), rel=1e-9)


def test_squared_difference_of_identical_and_of_large_features():
    labels = torch.tensor([0, 0, 1, 1])
    same = torch.ones(4, 3, requires_grad=True)
    loss = squared_difference_triplet(same, labels)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6) and torch.equal(same.grad, torch.zeros(4, 3))
    large = torch.tensor([[0.0], [5e8], [1e8], [2e8]], requires_grad=True)
    loss = squared_difference_triplet(large, labels)
    loss.backward()
    # Each anchor's farthest positive less its nearest negative is 4, 2, 0 and -1 (1e8); only the first two count.
    assert loss.item() == pytest.approx((16e16 + 4e16) / 4, rel=1e-5)
    assert torch.isfinite(large.grad).all() and large.grad.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [batch_hard_triplet, weighted_triplet, squared_difference_triplet])
def test_distances_are_taken_in_float32(loss, dtype):
    features, labels = batch(0)
    half = (100 * features).to(dtype)  # squared norms are beyond float16's 65504
    with torch.autocast("cpu", dtype):
        value = loss(half, labels)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(half.double(), labels).item(), rel=1e-4)


@pytest.mark.parametrize("loss", [batch_hard_triplet, weighted_triplet, squared_difference_triplet])
def test_gradients_are_finite_and_right(loss):
    features, labels = batch(1)
    features[4] = features[0]  # a duplicate of the same person: distance 0
    features.requires_grad_()
    loss(features, labels).backward()
    assert torch.isfinite(features.grad).all()
    clean, labels = batch(2)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), clean.requires_grad_(), atol=1e-5)
