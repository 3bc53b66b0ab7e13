"""Distances between a dataset's generated images and real sets: KID and FID, by camera and over all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dive_fast.data.counts import align
from dive_fast.data.names import natural_key
from dive_fast.data.sets import NamedSet, SetSpec, all_samples
from dive_fast.io import readable_json
from dive_fast.outputs import check_place, json_with, write_output
from dive_fast.quality.config import FEWEST, CompareConfig
from dive_fast.quality.dataset import dataset_hash, read_shard, shard_numbers
from dive_fast.quality.distances import frechet, kid, moments
from dive_fast.quality.extractor import Extractor
from dive_fast.quality.real import read_real, set_metadata
from dive_fast.quality.reid_extractor import F32
from dive_fast.synth.manifest import dropped
from dive_fast.types import MODALITIES, InputError, Modality, Sample, to_dict

ALL = "all"
_KIND = json_with("extractor", "rows")


@dataclass(frozen=True)
class SetDistance:
    """Generated against real images of one camera, or of all cameras of a modality. `dims` is D of the features.

    `real_*` is the distance between two halves of the real images, of different people (None for too few images): compare
    with it, as sets of few people are far apart and the standard error, which takes images as independent, misses that.
    """

    camera: str
    side: Modality
    made: int
    real: int
    dims: int
    kid: float
    kid_error: float | None
    fid: float
    real_kid: float | None
    real_kid_error: float | None
    real_fid: float | None

    @property
    def rank_deficient(self) -> bool:
        """Whether a covariance has fewer images than dimensions, which makes FID mostly bias."""
        return min(self.made, self.real) <= self.dims


def compare_sets(
    dataset: Path,
    real: Sequence[SetSpec],
    extractor: Extractor,
    config: CompareConfig = CompareConfig(),
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[list[SetDistance], list[str]]:
    """Distances of `dataset`'s generated images to `real` ones, and the cameras without real images.

    A row "all" of a modality joins those of its cameras that both sets have. Writes the rows as JSON to `out`, by default
    scores/sets.json. Raises `InputError` when no camera is in both sets, and for other rows at `out` without `overwrite`.
    """
    place = out or dataset / "scores" / "sets.json"
    check_place(place, _KIND)
    sets = read_real(real)
    made = _sampled(dataset, config)
    known = _real_by_camera(sets, made, config)
    lacking = [camera for camera in made if len(known.get(camera, [])) < FEWEST or len(made[camera]) < FEWEST]
    cameras = [camera for camera in made if camera not in lacking]
    if not cameras:
        raise InputError(f"no real set has {FEWEST} images of a camera of {dataset}; give one with {', '.join(made)}")
    rows = list(_rows({camera: (made[camera], known[camera]) for camera in cameras}, extractor, config.seed, progress))
    found = {
        "version": 1,
        "records": dataset_hash(dataset),
        "extractor": extractor.metadata,
        "sets": set_metadata(sets),
        **to_dict(config),
        "rows": [to_dict(row) for row in rows],
        "cameras_without_real": lacking,
    }
    write_output(place, readable_json(found), _KIND, overwrite or out is None)
    return rows, lacking


def _sampled(dataset: Path, config: CompareConfig) -> dict[str, list[Sample]]:
    """At most `most` generated images of each camera, in one walk by Algorithm R (Vitter 1985)."""
    gone = dropped(dataset) if config.kept_only else set()
    random, seen = np.random.default_rng(config.seed), dict[str, int]()
    held: dict[str, list[Sample]] = {}
    for number in shard_numbers(dataset):
        for pair, side in read_shard(dataset, number).made:
            camera = pair.cameras[side]
            if pair.pair_id in gone:
                continue
            seen[camera] = seen.get(camera, 0) + 1
            kept = held.setdefault(camera, [])
            if len(kept) < config.most:
                kept.append(pair.sample(dataset, side))
            elif (place := int(random.integers(seen[camera]))) < config.most:
                kept[place] = pair.sample(dataset, side)
    if not held:
        raise InputError(
            f"dataset {dataset} has no generated image" + (" that the filter kept" if config.kept_only else "")
        )
    return {camera: held[camera] for camera in sorted(held, key=natural_key)}


def _real_by_camera(
    sets: Sequence[NamedSet], made: dict[str, list[Sample]], config: CompareConfig
) -> dict[str, list[Sample]]:
    """Real images of the cameras in `made`, of the same modality; at most `most` of each."""
    random, found = np.random.default_rng([config.seed, 1]), dict[str, list[Sample]]()
    for sample in all_samples(sets):
        if sample.camera in made and sample.modality == made[sample.camera][0].modality:
            found.setdefault(sample.camera, []).append(sample)
    return {
        camera: listed
        if len(listed) <= config.most
        else [listed[n] for n in sorted(random.choice(len(listed), config.most, False))]
        for camera, listed in found.items()
    }


def _rows(
    cameras: dict[str, tuple[list[Sample], list[Sample]]], extractor: Extractor, seed: int, progress: bool
) -> Iterator[SetDistance]:
    features: dict[str, tuple[F32, F32]] = {}
    for camera, (made, real) in cameras.items():
        bars = (f"{camera}, generated", f"{camera}, real") if progress else (None, None)
        features[camera] = extractor.features(made, bars[0]), extractor.features(real, bars[1])
        yield set_distance(camera, made[0].modality, *features[camera], [s.pid for s in real], seed)
    for side in MODALITIES:
        of_side = [camera for camera, (made, _) in cameras.items() if made[0].modality == side]
        if len(of_side) > 1:
            both = [np.concatenate([features[camera][n] for camera in of_side]) for n in (0, 1)]
            pids = [s.pid for camera in of_side for s in cameras[camera][1]]
            yield set_distance(ALL, side, both[0], both[1], pids, seed)


def set_distance(camera: str, side: Modality, made: F32, real: F32, pids: Sequence[str], seed: int = 0) -> SetDistance:
    """The distance of features [N, D] of generated images to [M, D] of real ones, whose identities are `pids`."""
    close = kid(made, real, seed)
    halves = _halves(real, pids, seed)
    floor = None if halves is None else kid(*halves, seed)
    return SetDistance(
        camera=camera,
        side=side,
        made=len(made),
        real=len(real),
        dims=made.shape[1],
        kid=close.value,
        kid_error=close.error,
        fid=frechet(moments(made), moments(real)),
        real_kid=None if floor is None else floor.value,
        real_kid_error=None if floor is None else floor.error,
        real_fid=None if halves is None else frechet(moments(halves[0]), moments(halves[1])),
    )


def _halves(real: F32, pids: Sequence[str], seed: int) -> tuple[F32, F32] | None:
    """Two halves of the real images without a common person."""
    people = np.random.default_rng([seed, 2]).permutation(sorted(set(pids)))
    first = np.isin(np.array(pids), people[: len(people) // 2])
    return (real[first], real[~first]) if min(first.sum(), (~first).sum()) >= FEWEST else None


def table(rows: Sequence[SetDistance]) -> str:
    """The rows as aligned text; KID times 1,000, as in papers."""
    lines = [("camera", "side", "made", "real", "KID x1000", "+-", "FID", "real KID x1000", "real FID")]
    for row in rows:
        fid = _figure(row.fid) + ("*" if row.rank_deficient else "")
        value, error, real = (_figure(kid, 1000) for kid in (row.kid, row.kid_error, row.real_kid))
        lines.append(
            (row.camera, row.side, f"{row.made:,}", f"{row.real:,}", value, error, fid, real, _figure(row.real_fid))
        )
    text = align(lines, "<<>>>>>>>")
    notes = ["FID is biased upward for few images, by about 1/N: compare it only at equal N, and prefer KID."]
    if any(row.rank_deficient for row in rows):
        notes.append(
            f"* no more images than the {rows[0].dims} dimensions: the covariance has no full rank, FID is mostly bias."
        )
    return "\n".join([text, *notes])


def _figure(value: float | None, scale: float = 1) -> str:
    return "-" if value is None else f"{value * scale:.2f}"
