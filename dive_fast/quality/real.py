"""The real images that generated ones are compared with: checked to be real, and their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dive_fast.data.sets import NamedSet, SetSpec, all_samples, read_sets, settings_of
from dive_fast.quality.measures import centroids
from dive_fast.quality.reid_extractor import F32, Features
from dive_fast.synth.provenance import read_tags
from dive_fast.types import MODALITIES, InputError, Modality, Sample

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Centres:
    """Names, in order, and unit centroids [P, D] of the people with real images in one modality."""

    number: dict[str, int]
    rows: F32


@dataclass(frozen=True)
class RealImages:
    """Real sets and the features of their `samples`, in that order; `names` are "set/file"."""

    sets: tuple[NamedSet, ...]
    features: Features

    @cached_property
    def samples(self) -> list[Sample]:
        return all_samples(self.sets)

    @cached_property
    def names(self) -> list[str]:
        return [f"{named.name}/{named.file_name(sample)}" for named in self.sets for sample in named.samples]

    @cached_property
    def infrared(self) -> NDArray[np.bool_]:
        return np.array([sample.modality == "ir" for sample in self.samples])

    def rows(self, side: Modality) -> I64:
        return np.flatnonzero(self.infrared == (side == "ir"))

    def labels(self, rows: I64, by_camera: bool = False) -> I64:
        """A number for each person among `rows`, or for each person and camera."""
        keys = [(self.samples[row].pid, self.samples[row].camera if by_camera else "") for row in rows]
        number = {key: n for n, key in enumerate(sorted(set(keys)))}
        return np.array([number[key] for key in keys], np.int64)

    @cached_property
    def centres(self) -> dict[Modality, Centres]:
        """Every person's centroid, by modality."""
        found: dict[Modality, Centres] = {}
        for side in MODALITIES:
            rows = self.rows(side)
            pids = sorted({self.samples[row].pid for row in rows})
            made = centroids(self.features.identity[rows], self.labels(rows), len(pids))
            found[side] = Centres({pid: n for n, pid in enumerate(pids)}, made)
        return found


def read_real(specs: Sequence[SetSpec | str]) -> list[NamedSet]:
    """Reads real sets; an image whose own tags say that it is generated raises `InputError`."""
    sets = read_sets(specs)
    for sample in all_samples(sets):
        try:
            with open(sample.path, "rb") as stream:
                made = "synthetic" in read_tags(stream)
        except OSError as error:
            raise InputError(f"image {sample.path} cannot be read ({error.strerror})") from error
        if made:
            raise InputError(f"{sample.path} is a generated image, by its tags; leave it out")
    return sets


def set_metadata(sets: Sequence[NamedSet]) -> list[dict[str, Any]]:
    """Where a set's images lie, on the machine that scored, and how they were read."""
    return [{"name": named.name, "root": str(named.spec.root.absolute()), **settings_of(named.spec)} for named in sets]
