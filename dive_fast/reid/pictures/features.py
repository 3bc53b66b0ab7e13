"""Real and synthetic images in feature space: right neighbours as numbers, t-SNE as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.environment.optional import optional
from dive_fast.reid.pictures.rank import occurrences
from dive_fast.types import DiveError, Sample

F32 = NDArray[np.float32]
GROUPS = ("real visible", "real infrared", "synthetic visible", "synthetic infrared")
NEIGHBOURS = 10
_CHUNK = 1024  # images whose similarities to all real ones are in memory at a time
_FEWEST = 8  # images of a t-SNE picture


@dataclass(frozen=True)
class MeanShare:
    """A mean fraction over `images`, and its value for random neighbours; None if no image counts."""

    images: int
    share: float | None
    chance: float | None


@dataclass(frozen=True)
class GroupShares:
    """The nearest real images of a group's images.

    `trained`: the group's identities were in training, or (False) were not. `visible` and `infrared`: the fraction of the
    nearest visible (infrared) real images that show the same identity. `modality`: the fraction of the nearest real images,
    of any kind, that have the image's own modality.
    """

    group: str
    trained: bool
    images: int
    visible: MeanShare
    infrared: MeanShare
    modality: MeanShare


def group_of(sample: Sample) -> str:
    """Returns one of `GROUPS`."""
    return f"{sample.source} {'infrared' if sample.modality == 'ir' else 'visible'}"


def neighbour_shares(
    features: F32, samples: Sequence[Sample], trained: Collection[str] = (), neighbours: int = NEIGHBOURS
) -> list[GroupShares]:
    """Returns `GroupShares` of every group that `samples` have, from unit `features` float32 [N, D].

    A net knows the identities that it was `trained` on far better, so these form groups of their own. For every image the
    real images by its camera of its identity (itself included) are left out: they are almost copies, which generated images
    lack. The nearest `neighbours` of each image count, or as many as there are right ones if those are fewer, so every
    fraction can reach 1. An image without right ones is not counted.
    """
    group = np.array([group_of(s) for s in samples])
    known = np.array([s.pid in trained for s in samples])
    infrared = np.array([s.modality == "ir" for s in samples])
    kinds = {"visible": ~infrared, "infrared": infrared}
    found = []
    for name, in_training in itertools.product(GROUPS, (True, False)):
        rows = np.flatnonzero((group == name) & (known == in_training))
        if len(rows):
            shares = {kind: _share(features, samples, rows, pool, None, neighbours) for kind, pool in kinds.items()}
            own = _share(features, samples, rows, np.full(len(samples), True), kinds[name.split()[1]], neighbours)
            found.append(GroupShares(name, in_training, len(rows), modality=own, **shares))
    return found


def _share(
    features: F32,
    samples: Sequence[Sample],
    rows: NDArray[np.int64],
    kind: NDArray[np.bool_],
    wanted: NDArray[np.bool_] | None,
    neighbours: int,
) -> MeanShare:
    """The mean fraction of right images among the nearest real ones of a `kind` (bool [N]) of each row.

    The `wanted` images (bool [N]) are right, or with None those of the row's identity.
    """
    identity = np.unique([s.pid for s in samples], return_inverse=True)[1]
    camera = np.unique([s.camera for s in samples], return_inverse=True)[1]
    pool = np.flatnonzero(np.array([s.source == "real" for s in samples]) & kind)
    shares, chances = [], []
    for start in range(0, len(rows) if len(pool) else 0, _CHUNK):
        part = rows[start : start + _CHUNK]
        same = identity[part, None] == identity[pool]
        left_out = same & (camera[part, None] == camera[pool])
        right = (same if wanted is None else np.broadcast_to(wanted[pool], same.shape)) & ~left_out
        counted = right.any(axis=1)
        if not counted.any():
            continue
        similarity = features[part[counted]] @ features[pool].T
        similarity[left_out[counted]] = -np.inf
        order = _largest(similarity, neighbours)
        right, seen = right[counted], (~left_out[counted]).sum(axis=1)
        most = np.minimum(right.sum(axis=1), neighbours)
        near = np.take_along_axis(right, order, axis=1) & (np.arange(order.shape[1]) < most[:, None])
        shares.append(near.sum(axis=1) / most)
        chances.append(right.sum(axis=1) / seen)
    if not shares:
        return MeanShare(0, None, None)
    values, chance = np.concatenate(shares), np.concatenate(chances)
    return MeanShare(len(values), float(values.mean()), float(chance.mean()))


def _largest(values: F32, count: int) -> NDArray[np.int64]:
    """Columns of the `count` largest values of each row (all, if there are fewer), largest first."""
    few = min(count, values.shape[1])
    columns = np.argpartition(-values, few - 1, axis=1)[:, :few]
    order = np.argsort(-np.take_along_axis(values, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def people_in_turn(samples: Sequence[Sample], trained: Collection[str] = (), seed: int = 0) -> list[str]:
    """Returns all identities in random order, alternating between kinds: equal groups of images, trained on or not."""
    groups: dict[str, frozenset[str]] = {}
    for sample in samples:
        groups[sample.pid] = groups.get(sample.pid, frozenset()) | {group_of(sample)}
    people = np.random.default_rng([seed, 0]).permutation(sorted(groups)).tolist()
    turns = dict(zip(people, occurrences((groups[pid], pid in trained) for pid in people), strict=True))
    return sorted(people, key=lambda pid: (turns[pid], -len(groups[pid])))


def sample_people(samples: Sequence[Sample], people: Sequence[str], images: int) -> list[int]:
    """Returns the rows of at most `images` samples, in order: all images of the first of `people` that fit."""
    rows: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows.setdefault(sample.pid, []).append(row)
    chosen: list[int] = []
    for pid in people:
        if len(chosen) + len(rows[pid]) <= images:
            chosen += rows[pid]
    return sorted(chosen)


def require_tsne() -> Any:
    """Returns `sklearn.manifold`; raises `DiveError` without scikit-learn."""
    return optional("sklearn.manifold", "the picture of features", "give --images 0")


def tsne(features: F32, seed: int = 0) -> F32:
    """Maps unit features float32 [N, D] to float32 [N, 2] by t-SNE (van der Maaten and Hinton, JMLR 2008), PCA first."""
    if len(features) < _FEWEST:
        raise DiveError(f"a t-SNE picture needs at least {_FEWEST} images, got {len(features)}; give --images 0")
    perplexity = min(30.0, (len(features) - 1) / 3)
    found = require_tsne().TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)
    return np.asarray(found, np.float32)
