"""Batches of P identities with K visible and K infrared images each, the same for the same seed and step."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from dive_fast.data.names import abbreviate
from dive_fast.reid.data.dataset import Table
from dive_fast.reid.training.config import ReidConfig, scheduled_fraction
from dive_fast.types import InputError

Index = NDArray[np.int64]


class PairSampler:
    """P x (K + K) cross-modality batches (as AGW), drawn by step number, so a resumed run continues exactly.

    Each pass over the identities is a new permutation. Images repeat within a batch only when an identity has too few.
    With a synthetic fraction, that part of P (rounded) comes from the identities with a `counted` image (bool [N]) and the
    rest from the others. Consecutive steps with an equal part are a phase with its own passes over the identities.
    `dropped` names the identities that `missing="drop"` left out; `total_steps` is the length of the run.
    Raises `InputError` for identities that lack a modality, unless `missing` allows it, and for too few identities.
    """

    def __init__(self, table: Table, config: ReidConfig, counted: NDArray[np.bool_]):
        self._config, self._pids = config, table.pids
        labels, infrared = table.labels.numpy().astype(np.int64), table.infrared.numpy()
        self._visible, self._infrared = (
            _rows_by_label(labels, kind, len(table.pids)) for kind in (~infrared, infrared)
        )
        usable, self.dropped = self._usable()
        synthetic = np.isin(usable, labels[counted])
        self._kinds = usable, usable[~synthetic], usable[synthetic]  # all, real, synthetic
        kept = np.isin(labels, usable)
        most = max(int((kept & infrared).sum()), int((kept & ~infrared).sum()))  # AGW's epoch: the larger modality
        self.steps_per_epoch = max(1, -(-most // (config.identities * config.per_modality)))
        self.total_steps = config.steps or self.steps_per_epoch * (config.epochs or 0)
        self._starts, fractions = [0], [config.synthetic_fraction]  # each phase's first step and synthetic fraction
        if config.synthetic_schedule is not None:
            every = [
                scheduled_fraction(s, self.total_steps, config.synthetic_schedule) for s in range(self.total_steps)
            ]
            counts = [round(fraction * config.identities) for fraction in every]
            self._starts = [s for s, count in enumerate(counts) if s == 0 or count != counts[s - 1]]
            fractions = [every[step] for step in self._starts]
        self._groups = [self._split(fraction) for fraction in fractions]

    def batch(self, step: int) -> Index:
        """Returns the rows of batch number `step` (from 0), int64 [P * 2K]: by identity, visible before infrared."""
        rows = []
        for label in self._identities_at(step):
            rng = np.random.default_rng([self._config.seed, 1, step, label])
            visible, infrared, k = self._visible[label], self._infrared[label], self._config.per_modality
            if len(infrared):
                rows += [_draw(rng, visible, k), _draw(rng, infrared, k)]
            else:
                rows.append(_draw(rng, visible, 2 * k))
        return np.concatenate(rows)

    def _identities_at(self, step: int) -> list[int]:
        chosen: list[int] = []
        phase = bisect_right(self._starts, step) - 1
        for number, (members, count) in enumerate(self._groups[phase]):
            passes, place = divmod(step - self._starts[phase], len(members) // count)
            rng = np.random.default_rng([self._config.seed, 0, number, passes, *([phase] if phase else [])])
            order = rng.permutation(members)
            chosen += order[place * count : (place + 1) * count].tolist()
        return chosen

    def _usable(self) -> tuple[Index, tuple[str, ...]]:
        """The labels to draw from, and the identities left out."""
        needed, missing = self._config.identities, self._config.missing
        no_infrared = [label for label, rows in enumerate(self._infrared) if not len(rows)]
        no_visible = [label for label, rows in enumerate(self._visible) if not len(rows)]
        lacking = sorted(no_visible if missing == "visible" else no_infrared + no_visible)
        if lacking and missing != "drop":
            infrared, visible = (
                abbreviate([self._pids[label] for label in labels], 5) or "none" for labels in (no_infrared, no_visible)
            )
            lists = f"no infrared: {infrared}; no visible: {visible}"
            remedy = f"add images, or choose --missing drop{'' if no_visible else ' or visible'}"
            raise InputError(f"{len(lacking)} of {len(self._pids)} identities lack a modality ({lists}); {remedy}")
        usable = np.setdiff1d(np.arange(len(self._pids)), np.array(lacking, np.int64))
        if len(usable) < needed:
            raise InputError(f"a batch needs {needed} identities, got {len(usable)}; lower --identities")
        return usable, tuple(self._pids[label] for label in lacking)

    def _split(self, fraction: float | None) -> list[tuple[Index, int]]:
        """Groups of identities, and how many of each go into a batch."""
        usable, *groups = self._kinds
        if fraction is None:
            return [(usable, self._config.identities)]
        synthetic = round(fraction * self._config.identities)
        counts = [self._config.identities - synthetic, synthetic]
        for kind, members, count in zip(("real", "synthetic"), groups, counts, strict=True):
            if len(members) < count:
                raise InputError(f"synthetic_fraction {fraction:g} needs {count} {kind} identities, got {len(members)}")
        return [(members, count) for members, count in zip(groups, counts, strict=True) if count]


def _rows_by_label(labels: Index, kind: NDArray[np.bool_], count: int) -> list[Index]:
    """The rows of a `kind` (bool [N]) of each label, in order."""
    rows = np.flatnonzero(kind)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    return np.split(rows, np.searchsorted(labels[rows], np.arange(1, count)))


def _draw(rng: np.random.Generator, rows: Index, count: int) -> Index:
    return rng.choice(rows, count, replace=len(rows) < count)
