"""Scores of one generated image from real features, centroids, the probe and training images."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dive_fast.data.names import abbreviate, prefix_hint
from dive_fast.quality.measures import F32, I64, left_out_margins, margins, nearest, nearest_within, quantiles
from dive_fast.quality.probe import ProbeReport, fit, held_out, probability_infrared
from dive_fast.quality.real import RealImages
from dive_fast.quality.reid_extractor import Features
from dive_fast.types import MODALITIES, InputError, Modality

PER_IMAGE = (
    "identity",
    "modality",
    "memorisation",
)  # the columns of `Scorer.values`; diversity needs the others' features


@dataclass(frozen=True)
class Scorer:
    """Scores images row by row; `wanted` names the scores."""

    real: RealImages
    train: RealImages
    wanted: Collection[str]
    percentile: float = 99.9

    def check(self, pids: Collection[str], sides: Collection[Modality]) -> None:
        """Raises `InputError` when the real sets lack what the wanted scores of these identities and sides need."""
        known = self.real.centres["rgb"].number.keys() | self.real.centres["ir"].number.keys()
        unknown = sorted(pid for pid in pids if pid not in known)
        if "identity" in self.wanted and unknown:
            raise InputError(
                f"{len(unknown):,} of {len(pids):,} identities are not in the real sets ({abbreviate(unknown)}); add their "
                f"set, with the prefix that they were learned with{prefix_hint(known, unknown)}"
            )
        crowd = {len(c.number) for c in self.real.centres.values()}
        if "identity" in self.wanted and crowd & {1}:
            raise InputError("score identity needs at least two people in each modality of the real sets")
        if "modality" in self.wanted and min(len(c.number) for c in self.real.centres.values()) < 2:
            raise InputError(
                "score modality needs real images of two people in RGB and two in infrared; add a paired set"
            )
        if "memorisation" in self.wanted:
            for side in sides:
                if not len(self.train.rows(side)):
                    raise InputError(
                        f"score memorisation: no training image is {side}; give the generator's sets (--train)"
                    )

    def values(self, features: Features, pids: Sequence[str], sides: Sequence[Modality]) -> tuple[F32, I64]:
        """Scores [n, len(PER_IMAGE)] (NaN: not wanted) and each row's nearest training image (-1: not wanted)."""
        scores = np.full((len(features), len(PER_IMAGE)), np.nan, np.float32)
        neighbour = np.full(len(features), -1, np.int64)
        if "identity" in self.wanted:
            scores[:, 0] = self._margins(features, pids)
        infrared = np.array([side == "ir" for side in sides])
        if "modality" in self.wanted:
            probability = probability_infrared(self.probe, features.tone)
            scores[:, 1] = np.where(infrared, probability, 1 - probability)
        if "memorisation" in self.wanted:
            for side in MODALITIES:
                rows = np.flatnonzero(infrared == (side == "ir"))
                if len(rows):
                    bank, known = self._banks[side]
                    scores[rows, 2], at = nearest(features.identity[rows], known)
                    neighbour[rows] = bank[at]
        return scores, neighbour

    def _margins(self, features: Features, pids: Sequence[str]) -> F32:
        found = np.empty(len(pids), np.float32)
        visible = np.array([pid in self.real.centres["rgb"].number for pid in pids])
        for side in MODALITIES:
            rows, centres = np.flatnonzero(visible == (side == "rgb")), self.real.centres[side]
            if len(rows):
                own = np.array([centres.number[pids[int(row)]] for row in rows])
                found[rows] = margins(features.identity[rows], own, centres.rows)
        return found

    @cached_property
    def probe(self) -> Any:
        return fit(self.real.features.tone, self.real.infrared)

    @cached_property
    def probe_report(self) -> ProbeReport | None:
        """The probe's accuracy on held-out people; None when modality is not wanted."""
        if "modality" not in self.wanted:
            return None
        rows = np.arange(len(self.real.samples))
        return held_out(self.real.features.tone, self.real.infrared, self.real.labels(rows))

    @cached_property
    def _banks(self) -> dict[Modality, tuple[I64, F32]]:
        """The training images of each modality: their rows and features."""
        rows = {side: self.train.rows(side) for side in MODALITIES}
        return {side: (found, self.train.features.identity[found]) for side, found in rows.items()}

    def thresholds(self) -> dict[str, Any]:
        """Memorisation's threshold, by side: the `percentile` of real training images' similarity to the nearest other one
        of the same person and modality, and the number of images. A side without two images of one person has none.
        """
        found = {}
        for side in MODALITIES if "memorisation" in self.wanted else ():
            similar = self._alike(self.train, side)
            if len(similar):
                value = float(np.quantile(similar, self.percentile / 100))
                found[side] = {"value": round(value, 6), "percentile": self.percentile, "images": len(similar)}
        return {"memorisation": found}

    def on_real(self) -> dict[str, dict[Modality, dict[str, float]]]:
        """Quantiles of the same measures on the real images, by score and side, for comparison.

        Real RGB images are left out of their own centroid, and people are judged by probes that were fitted to others.
        """
        report = self.probe_report
        own = None if report is None else report.own
        found: dict[str, dict[Modality, dict[str, float]]] = {}
        for side in MODALITIES:
            rows = self.real.rows(side)
            values = {
                "identity": self._real_margins(side, rows),
                "modality": np.empty(0, np.float32) if own is None else own[rows],
                "diversity": 1
                - nearest_within(self.real.features.identity[rows], self.real.labels(rows, by_camera=True)),
                "memorisation": self._alike(self.train, side),
            }
            for name, column in values.items():
                if name in self.wanted and len(column):
                    found.setdefault(name, {})[side] = quantiles(column)
        return found

    def _real_margins(self, side: Modality, rows: I64) -> F32:
        features, visible = self.real.features.identity[rows], self.real.centres["rgb"].number
        if side == "rgb":
            return (
                left_out_margins(features, self.real.labels(rows), len(visible))
                if len(visible) > 1
                else features[:0, 0]
            )
        known = np.array([self.real.samples[row].pid in visible for row in rows], bool)
        own = np.array([visible[self.real.samples[row].pid] for row in rows[known]], np.int64)
        return margins(features[known], own, self.real.centres["rgb"].rows) if len(own) else features[:0, 0]

    @staticmethod
    def _alike(images: RealImages, side: Modality) -> F32:
        rows = images.rows(side)
        return nearest_within(images.features.identity[rows], images.labels(rows))
