"""Infrared of a study's arms, measured by a ReID net that was trained on the world's test identities."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.data.counts import align
from dive_fast.data.images import photo_pixels
from dive_fast.data.names import natural_key, sample_key
from dive_fast.data.sysu import read_sysu
from dive_fast.experiments.arms import oracle_infrared
from dive_fast.experiments.config import SCORER
from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.quality.config import FEWEST
from dive_fast.quality.kept import Kept, cells, kept_by_camera, open_scorer
from dive_fast.quality.reid_extractor import F32
from dive_fast.quality.sets import ALL, SetDistance, set_distance
from dive_fast.reid.data.dataset import fingerprint
from dive_fast.reid.training.checkpoint import read_record
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.train import train_reid
from dive_fast.types import InputError, Sample, to_dict
from dive_fast.world.cameras import IMAGE_HEIGHT, IMAGE_WIDTH

F64 = NDArray[np.float64]
# Rows and columns of the world's 128x64 images in which torso and legs of nearly every shot lie, arms left out.
BOXES = {"torso": (slice(42, 66), slice(24, 40)), "legs": (slice(74, 110), slice(24, 40))}


def train_scorer(
    world: Path, out: Path, config: ReidConfig = SCORER, *, device: str = "cpu", progress: bool = True
) -> Path:
    """Trains a ReID net on the true RGB and infrared of a world's test identities and returns `out`, its checkpoint.

    A stopped run resumes, and a finished one is returned unchanged, as by `train_reid`.
    """
    return train_reid(read_sysu(world / "sysu", "test"), config, out, device=device, progress=progress)


@dataclass(frozen=True)
class InfraredQuality:
    """One set of infrared images beside true infrared of the same identities, by one camera or "all".

    `kept` searches the images among the true ones of all identities. `distance` has KID and FID to the true ones.
    `brightness` is Pearson's correlation over identities between the mean brightness of torso and legs in both, None where
    one side does not vary.
    """

    camera: str
    kept: Kept
    distance: SetDistance
    brightness: dict[str, float | None]


@dataclass(frozen=True)
class PictureQuality:
    """The infrared of several arms against the same true infrared; an arm's rows are for all cameras, then for each."""

    arms: dict[str, tuple[InfraredQuality, ...]]

    def ratios(self) -> dict[str, dict[str, float | None]]:
        """Returns KID and FID of arm ours over those of arm autoencoder, by camera; None for no ratio.

        `kid_above_oracle` and `fid_above_oracle` are ratios of what is above arm oracle. Prefer these: equal people on both
        sides pull KID below 0, and few images raise FID, for all arms alike.
        """
        found: dict[str, dict[str, float | None]] = {}
        for rows in zip(*(self.arms[name] for name in ("ours", "autoencoder", "oracle")), strict=True):
            ratios = found.setdefault(rows[0].camera, {})
            for name in ("kid", "fid"):
                value, cost, floor = (getattr(row.distance, name) for row in rows)
                ratios[name] = _ratio(value, cost)
                ratios[f"{name}_above_oracle"] = _ratio(value - floor, cost - floor)
        return found

    def summary(self) -> dict[str, Any]:
        """Returns the record for JSON, without what it says of single identities."""
        arms = {
            name: [{**to_dict(row), "kept": row.kept.summary()} for row in rows] for name, rows in self.arms.items()
        }
        return {"arms": arms, "ratios": self.ratios()}


def _ratio(value: float, cost: float) -> float | None:
    return value / cost if cost > 0 else None


def picture_quality(
    world: Path,
    arms: Mapping[str, Sequence[Sample]],
    scorer: Path,
    *,
    shots: int = 5,
    device: str = "cpu",
    batch: int = 128,
    progress: bool = True,
) -> PictureQuality:
    """Measures the infrared of `arms`, of a world's external identities, by the checkpoint `scorer`.

    Needs the arms ours and autoencoder. Adds arm oracle, the true infrared of the first `shots` of each identity and camera,
    and searches all arms in the true infrared of the other shots: so no arm made of those first shots meets its own source.
    Arms are measured on identities and cameras of arm ours; distances take equally many images of each arm and camera.
    Raises `InputError` as `open_scorer`, and for cameras with too few images.
    """
    first, gallery = true_infrared(world, shots)
    ours = arms["ours"]
    alike = {  # sorted, for alike blocks in KID
        name: sorted(_alike(samples, ours), key=sample_key) for name, samples in {**arms, "oracle": first}.items()
    }
    net = open_scorer(scorer, [s for samples in alike.values() for s in samples], gallery, device=device, batch=batch)
    counts = _equal_counts(ours, _alike(gallery, ours), *alike.values())

    def measured(name: str, samples: Sequence[Sample]) -> _Images:
        return _Images(samples, net.features(samples, f"{name} images" if progress else None), _brightness(samples))

    known = measured("true", gallery)
    return PictureQuality({name: _rows(measured(name, samples), known, counts) for name, samples in alike.items()})


def true_infrared(world: Path, shots: int) -> tuple[list[Sample], list[Sample]]:
    """Returns the oracle's infrared of the first `shots` of each external identity and camera, and that of the others.

    Raises `InputError` where no others are left.
    """
    first = oracle_infrared(world, shots)
    taken = set(first)
    others = [sample for sample in oracle_infrared(world, sys.maxsize) if sample not in taken]
    if not others:
        raise InputError(f"world {world} has no more than {shots} shots of an identity; give a smaller --shots")
    return first, others


def measured_once(
    path: Path, scorer: Path, sets: Mapping[str, Sequence[Sample]], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Returns what `measure` found of the images in `sets` by the checkpoint `scorer`, kept as JSON in `path`.

    A result of other images or another scorer is measured again.
    """
    source = {"scorer": read_record(scorer)["sha256"]}
    source |= {name: fingerprint(samples) for name, samples in sets.items()}
    if path.exists():
        stored: Any = read_json(path, "measurement")
        found = stored.get("found") if isinstance(stored, dict) and stored.get("source") == source else None
        if isinstance(found, dict):
            return found
    found = measure()
    write_json(path, {"source": source, "found": found})
    return found


def _alike(samples: Sequence[Sample], made: Sequence[Sample]) -> list[Sample]:
    """The samples with identities and cameras of `made`."""
    pids, cameras = {sample.pid for sample in made}, {sample.camera for sample in made}
    return [sample for sample in samples if sample.pid in pids and sample.camera in cameras]


def _equal_counts(*sets: Sequence[Sample]) -> dict[str, int]:
    """Images of each camera of the first set that all sets have; fewer than `FEWEST` raise `InputError`."""
    cameras = sorted({sample.camera for sample in sets[0]}, key=natural_key)
    counts = {camera: min(sum(s.camera == camera for s in samples) for samples in sets) for camera in cameras}
    few = [f"{camera} {count}" for camera, count in counts.items() if count < FEWEST]
    if few:
        raise InputError(
            f"quality needs {FEWEST} images a camera, generated and true ones on both sides of --shots; got {', '.join(few)}"
        )
    return counts


def brightness(samples: Sequence[Sample]) -> F64:
    """Mean grey level [identities, boxes] of each of the `BOXES` over an identity's images, in order of names."""
    return _by_identity(samples, _brightness(samples))


def _by_identity(samples: Sequence[Sample], values: F64) -> F64:
    """The means [identities, D] of rows [N, D] of one identity each, in order of names."""
    pids = np.array([sample.pid for sample in samples])
    return np.array([values[pids == pid].mean(axis=0) for pid in np.unique(pids)])


def _brightness(samples: Sequence[Sample]) -> F64:
    """Mean grey level [N, boxes] of each of the `BOXES`."""
    pixels = (photo_pixels(sample.path, IMAGE_HEIGHT, IMAGE_WIDTH) for sample in samples)
    return np.array([[image[box].mean() for box in BOXES.values()] for image in pixels])


@dataclass(frozen=True)
class _Images:
    """Samples, their features [N, D] and the brightness of their boxes [N, boxes]."""

    samples: Sequence[Sample]
    features: F32
    levels: F64

    def of(self, cameras: Collection[str], pids: Collection[str]) -> _Images:
        return self._take([n for n, s in enumerate(self.samples) if s.camera in cameras and s.pid in pids])

    def draw(self, counts: Mapping[str, int]) -> _Images:
        """So many random images of each camera; the same ones every time."""
        random = np.random.default_rng(0)
        order = random.permutation(len(self.samples)).tolist()
        rows = [[n for n in order if self.samples[n].camera == camera][:count] for camera, count in counts.items()]
        return self._take(sorted(n for some in rows for n in some))

    def by_identity(self) -> F64:
        """Mean brightness [identities, boxes], in order of names."""
        return _by_identity(self.samples, self.levels)

    def _take(self, rows: list[int]) -> _Images:
        return _Images([self.samples[row] for row in rows], self.features[rows], self.levels[rows])


def _rows(images: _Images, known: _Images, counts: Mapping[str, int]) -> tuple[InfraredQuality, ...]:
    """Measures `images` beside the true ones `known`, by camera; distances take `counts` images of each camera."""
    found = []
    for name, kept in kept_by_camera(images.samples, images.features, known.samples, known.features).items():
        cameras = list(counts) if name == ALL else [name]
        pids = {sample.pid for sample in images.samples if sample.camera in cameras}
        here, there = images.of(cameras, pids), known.of(cameras, pids)
        taken = {camera: counts[camera] for camera in cameras}
        a, b = here.draw(taken), there.draw(taken)
        distance = set_distance(name, "ir", a.features, b.features, [sample.pid for sample in b.samples])
        found.append(InfraredQuality(name, kept, distance, correlations(here.by_identity(), there.by_identity())))
    return tuple(found)


def correlations(a: F64, b: F64) -> dict[str, float | None]:
    """Returns Pearson's correlation over identities for each of the `BOXES`, of two arrays [identities, boxes]."""
    columns = zip(BOXES, a.T, b.T, strict=True)
    return {box: float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else None for box, x, y in columns}


def table(quality: PictureQuality) -> str:
    """Returns the figures as aligned text; KID times 1,000, as in papers."""
    head = ("arm", "camera", "images", "own first, % by image", "by identity", "KID x1000", "+-", "FID", *BOXES)
    lines = [head, *([name, *_cells(row)] for name, rows in quality.arms.items() for row in rows)]
    ratios = [
        f"{camera}: ours over autoencoder: KID {_figure(ratio['kid'])}, FID {_figure(ratio['fid'])}; of what is above "
        f"oracle: KID {_figure(ratio['kid_above_oracle'])}, FID {_figure(ratio['fid_above_oracle'])}"
        for camera, ratio in quality.ratios().items()
    ]
    return "\n".join([align(lines, "<<>>>>>>" + ">" * len(BOXES)), *ratios])


def _cells(row: InfraredQuality) -> list[str]:
    distance = row.distance
    numbers = [distance.kid * 1000, None if distance.kid_error is None else distance.kid_error * 1000, distance.fid]
    return [row.camera, f"{row.kept.images:,}", *cells(row.kept), *map(_figure, [*numbers, *row.brightness.values()])]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
