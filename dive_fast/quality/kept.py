"""Identity kept: how often a ReID net finds the own person first when generated images are searched among true ones.

An interval is at 95 % and takes the images of one identity as correlated: identities are what is drawn, not images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.data.names import abbreviate, natural_key, prefix_hint
from dive_fast.data.sets import SetSpec, all_samples
from dive_fast.progress import log
from dive_fast.quality.extractor import ReidFeatures
from dive_fast.quality.measures import F32, I64, centroids, nearest, unit
from dive_fast.quality.real import read_real
from dive_fast.quality.reid_extractor import open_extractor
from dive_fast.quality.sets import ALL
from dive_fast.reid.comparison.records import Rate
from dive_fast.reid.data.dataset import check_samples
from dive_fast.reid.evaluation.evaluate import check_unseen
from dive_fast.reid.training.checkpoint import read_record
from dive_fast.synth import manifest
from dive_fast.types import MODALITIES, InputError, Modality, Sample, to_dict

F64 = NDArray[np.float64]
Z = NormalDist().inv_cdf(0.975)  # half a 95 % interval in standard errors
POWER = NormalDist().inv_cdf(0.8)  # on top of Z: the interval excludes 0 in four of five cases


@dataclass(frozen=True)
class IdentityKept:
    """One identity: its query images, those that were `found` first, and whether their mean was (`mean_found`)."""

    pid: str
    images: int
    found: int
    mean_found: bool


@dataclass(frozen=True)
class Kept:
    """Identity kept over all queries.

    `by_image` is the fraction of images whose nearest gallery image has the own identity; its interval is Wilson's at the
    effective number of images, by a standard error that is robust to correlation within identities. `by_identity` is the
    fraction of identities whose mean feature is nearest to the own mean in the gallery, with Wilson's interval. Chance is 1
    in `gallery_identities`. `each` has one row per identity, in order of names.
    """

    images: int
    identities: int
    gallery_identities: int
    by_image: Rate
    by_identity: Rate
    each: tuple[IdentityKept, ...]

    def summary(self) -> dict[str, Any]:
        """Returns the record for JSON, without `each`."""
        return {name: value for name, value in to_dict(self).items() if name != "each"}


@dataclass(frozen=True)
class Difference:
    """One rate minus another, and its 95 % interval.

    `smallest` is the smallest true difference that such a comparison shows in four of five cases: 2.8 standard errors.
    """

    value: float
    low: float
    high: float
    smallest: float


@dataclass(frozen=True)
class KeptDifference:
    """The differences of two runs on the same identities, by image and by identity."""

    identities: int
    by_image: Difference
    by_identity: Difference


def kept_of_features(query: F32, query_pids: Sequence[str], gallery: F32, gallery_pids: Sequence[str]) -> Kept:
    """Searches query features float32 [Q, D] by cosine among gallery features [G, D]; each has the identity of its pid.

    Raises `InputError` without queries, for a query identity that is not in the gallery, and for a gallery of one identity.
    """
    names = sorted(set(gallery_pids))
    _check_identities(query_pids, names)
    number = {pid: n for n, pid in enumerate(names)}
    own = np.array([number[pid] for pid in query_pids], np.int64)
    known = np.array([number[pid] for pid in gallery_pids], np.int64)
    queries, bank = unit(query), unit(gallery)
    found = known[nearest(queries, bank)[1]] == own
    searched, label = np.unique(own, return_inverse=True)
    centres = centroids(queries, label, len(searched))
    mean_found = nearest(centres, centroids(bank, known, len(names)))[1] == searched
    images, hits = np.bincount(label), np.bincount(label[found], minlength=len(searched))
    rows = zip((names[n] for n in searched), images.tolist(), hits.tolist(), mean_found.tolist(), strict=True)
    return Kept(
        images=len(own),
        identities=len(searched),
        gallery_identities=len(names),
        by_image=_clustered_rate(hits, images),
        by_identity=wilson(float(mean_found.mean()), len(searched)),
        each=tuple(IdentityKept(*row) for row in rows),
    )


def _check_identities(query: Sequence[str], gallery: Sequence[str]) -> None:
    missing = sorted(set(query) - set(gallery), key=natural_key)
    if not query:
        raise InputError("identity kept: there is no query image")
    if missing:
        raise InputError(
            f"identity kept: {len(missing):,} of {len(set(query)):,} identities have no true image of this modality "
            f"({abbreviate(missing)}); add their set, with the prefix that they were learned with"
            f"{prefix_hint(gallery, missing)}"
        )
    if len(gallery) < 2:
        raise InputError(f"identity kept: the gallery has one identity, {gallery[0]}; a search needs at least two")


def wilson(value: float, count: float) -> Rate:
    """Returns Wilson's 95 % interval (JASA 1927) of the fraction `value` of `count` independent draws."""
    centre = (value + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * (value * (1 - value) / count + (Z / (2 * count)) ** 2) ** 0.5 / (1 + Z**2 / count)
    return Rate(value, max(0.0, centre - half), min(1.0, centre + half))


def _clustered_rate(hits: I64, images: I64) -> Rate:
    """The fraction of images that are hits, both counted by identity.

    The effective number of images is the one whose binomial variance is the variance between identities (Korn and Graubard,
    Survey Methodology 1998); it is at most all images. That variance is unknown for one identity and at fractions of 0 and
    1: an identity then counts as one image.
    """
    identities, total = len(images), int(images.sum())
    value = int(hits.sum()) / total
    binomial = value * (1 - value)
    if identities == 1 or binomial == 0:
        return wilson(value, identities)
    variance = float(np.square(_residuals(hits, images)).sum()) / (identities * (identities - 1))
    return wilson(value, binomial / max(variance, binomial / total))


def _residuals(hits: I64, images: I64) -> F64:
    """What each identity adds to the fraction of hits, linearised: mean 0, and their standard error is the fraction's."""
    return (hits - images * (hits.sum() / images.sum())) / images.mean()


def kept_difference(a: Kept, b: Kept) -> KeptDifference:
    """Returns the rates of `a` minus those of `b`, paired over identities; the images themselves need no pairs.

    With `a` the run of reference, as 50 steps, and `b` a faster one, a difference above 0 is the loss of identity kept.
    Raises `InputError` for runs on different identities or galleries.
    """
    if [one.pid for one in a.each] != [one.pid for one in b.each] or a.gallery_identities != b.gallery_identities:
        raise InputError(
            f"identity kept: the runs differ in their identities ({a.identities:,} among {a.gallery_identities:,}, "
            f"{b.identities:,} among {b.gallery_identities:,}); compare runs on the same ones"
        )
    residuals = _residuals(*_counts(a)) - _residuals(*_counts(b))
    means = [np.array([one.mean_found for one in kept.each], np.float64) for kept in (a, b)]
    return KeptDifference(
        a.identities, _paired(a.by_image.value - b.by_image.value + residuals), _paired(means[0] - means[1])
    )


def _counts(kept: Kept) -> tuple[I64, I64]:
    """Each identity's images that were found, and all of its images."""
    return np.array([one.found for one in kept.each]), np.array([one.images for one in kept.each])


def _paired(values: F64) -> Difference:
    """The mean of identities' differences [I], each in -1..1.

    The interval is Agresti and Min's (Statistics in Medicine 2005): it adds two identities with half a loss and half a gain
    in total, so it keeps a width where no identity differs.
    """
    count = len(values) + 2
    centre = float(values.sum()) / count
    variance = (float(np.square(values).sum()) + 1) / count - centre**2
    error = (variance / count) ** 0.5
    return Difference(float(values.mean()), centre - Z * error, centre + Z * error, (Z + POWER) * error)


def kept_by_camera(
    query: Sequence[Sample], query_features: F32, gallery: Sequence[Sample], gallery_features: F32
) -> dict[str, Kept]:
    """Returns identity kept of all queries as "all" and, for several cameras, of each one's, always in the whole gallery."""
    cameras = sorted({sample.camera for sample in query}, key=natural_key)
    rows = {ALL: np.ones(len(query), bool)}
    if len(cameras) > 1:
        rows |= {camera: np.array([sample.camera == camera for sample in query]) for camera in cameras}
    pids, known = np.array([sample.pid for sample in query]), [sample.pid for sample in gallery]
    return {
        name: kept_of_features(query_features[chosen], pids[chosen].tolist(), gallery_features, known)
        for name, chosen in rows.items()
    }


def open_scorer(
    checkpoint: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    *,
    device: str = "cpu",
    batch: int = 128,
    other_people: bool = False,
) -> ReidFeatures:
    """Opens a ReID checkpoint that may search `query` among `gallery`, images of one modality.

    Raises `InputError` for one that was trained on synthetic images, or on identities of either side unless `other_people`;
    for sides of different modalities or with a common file; and for missing identities (see `kept_of_features`).
    """
    check_samples([*query, *gallery], "identity kept")
    modalities = {sample.modality for sample in [*query, *gallery]}
    if len(modalities) > 1:
        raise InputError(
            "identity kept: queries and gallery hold RGB and infrared images; search one modality at a time"
        )
    _check_identities([sample.pid for sample in query], sorted({sample.pid for sample in gallery}))
    extractor = open_extractor(checkpoint, device, batch)
    if not other_people:
        check_unseen(read_record(Path(checkpoint)), query, gallery)
    return ReidFeatures(extractor)


def kept_of_samples(
    checkpoint: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    *,
    device: str = "cpu",
    batch: int = 128,
    progress: bool = True,
    other_people: bool = False,
) -> dict[str, Kept]:
    """Searches the images `query` among `gallery` by a ReID checkpoint.

    Returns what `kept_by_camera` does, and raises as `open_scorer`. `progress` shows bars.
    """
    net = open_scorer(checkpoint, query, gallery, device=device, batch=batch, other_people=other_people)
    bars = ("query images", "gallery images") if progress else (None, None)
    sides = [net.features(samples, bar) for samples, bar in zip((query, gallery), bars, strict=True)]
    return kept_by_camera(query, sides[0], gallery, sides[1])


def identity_kept(
    dataset: Path | str,
    checkpoint: Path | str,
    real: Sequence[SetSpec | str],
    *,
    device: str = "cpu",
    batch: int = 128,
    progress: bool = True,
    other_people: bool = False,
) -> dict[Modality, dict[str, Kept]]:
    """Searches the generated images of a dataset among the true images `real`, each modality by itself.

    `dataset` is a folder from `synthesize`, `checkpoint` one from `train_reid`, trained on real images of other people;
    `real` are sets, as "sysu:PATH,prefix=1". Returns by modality, "rgb" and "ir", what `kept_of_samples` does; a modality
    that one side lacks is left out with a note. Raises as `open_scorer`, and `InputError` where no modality is left.
    """
    made = [sample for sample in manifest.read_pairs(dataset) if sample.source == "synthetic"]
    known = all_samples(read_real(real))
    found = {}
    for side in MODALITIES:
        query, gallery = ([s for s in samples if s.modality == side] for samples in (made, known))
        if not query or not gallery:
            log(f"note: {side} is left out, as {'the real sets have' if query else 'the dataset has'} no such image")
            continue
        options: dict[str, Any] = {"batch": batch, "progress": progress, "other_people": other_people}
        found[side] = kept_of_samples(checkpoint, query, gallery, device=device, **options)
    if not found:
        raise InputError(f"the real sets have no image of a modality that dataset {dataset} generated")
    return found


def cells(kept: Kept) -> list[str]:
    """Returns both rates in percent with their intervals, for a table."""
    return [
        f"{100 * rate.value:.1f} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"
        for rate in (kept.by_image, kept.by_identity)
    ]
