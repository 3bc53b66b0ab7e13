"""Losses of identity embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float = 0.3) -> Tensor:
    """Triplet loss on each anchor's farthest positive and nearest negative (arXiv:1703.07737), float [].

    `features` [B, D], `labels` int64 [B]; like all of these losses it requires two identities in the batch.
    """
    distances, same = _pairs(features, labels)
    farthest = distances.masked_fill(~same, 0.0).amax(1)
    nearest = distances.masked_fill(same, float("inf")).amin(1)
    return F.relu(margin + farthest - nearest).mean()


def weighted_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Weighted regularised triplet loss (AGW, arXiv:2001.04193), float []: no margin, every pair weighted by how hard it is.

    `features` [B, D], `labels` int64 [B]. As in AGW's code an anchor is one of its own positives, at distance 0.
    """
    return F.softplus(_weighted_difference(features, labels)).mean()


def squared_difference_triplet(features: Tensor, labels: Tensor) -> Tensor:
    """Enhanced squared-difference loss (CAJ: Ye et al., ICCV 2021), float []: `weighted_triplet`, its difference squared.

    For each anchor i, with x = (sum over positives of w+ d) - (sum over negatives of w- d), d Euclidean distances, w+ the
    softmax of d over the positives and w- that of -d over the negatives: mean over i of log(1 + exp(sign(x) x^2)). The
    square keeps its sign: anchors with far positives get larger gradients, and those that are right already fade out.
    `features` [B, D] (of all views of a batch), `labels` int64 [B]; the modality has no effect. As in AGW's and CAJ's code
    an anchor is one of its own positives, at distance 0. Unlike that code x^2 has no ceiling (88 there, above which the
    hardest anchors get no gradient; softplus needs none), and the weights' denominators have no constant added.
    """
    difference = _weighted_difference(features, labels)
    return F.softplus(difference * difference.abs()).mean()


def _weighted_difference(features: Tensor, labels: Tensor) -> Tensor:
    """Each anchor's mean distance to its positives minus that to its negatives, both weighted by hardness, [B]."""
    distances, same = _pairs(features, labels)
    hard_far = torch.softmax(distances.masked_fill(~same, float("-inf")), 1)
    hard_near = torch.softmax((-distances).masked_fill(same, float("-inf")), 1)
    return (hard_far * distances).sum(1) - (hard_near * distances).sum(1)


def _pairs(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances [B, B], at least float32 also under autocast, and whether a pair shares its identity, bool."""
    same = labels[:, None] == labels
    with torch.autocast(features.device.type, enabled=False):  # squared norms leave the range of float16
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        squares = (features**2).sum(1)
        squared = squares[:, None] + squares - 2 * features @ features.T
    # The root's slope is infinite at 0: the clamp gives the smallest distances no gradient.
    return squared.clamp(min=1e-12).sqrt(), same
