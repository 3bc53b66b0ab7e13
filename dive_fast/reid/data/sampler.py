"""Batches of P identities with K visible and K infrared images each, the same for the same seed and step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dive_fast.reid.data.config import Missing
from dive_fast.types import InputError

Index = NDArray[np.int64]


class PairSampler:
    """P x (K + K) cross-modality batches (as AGW), drawn by step number, so a resumed run continues exactly.

    Each pass over the identities is a new permutation. Images repeat within a batch only when an identity has too few.
    `dropped` names the identities that `missing="drop"` left out.
    """

    def __init__(
        self,
        labels: Sequence[int] | Index,
        infrared: Sequence[bool] | NDArray[np.bool_],
        *,
        identities: int,
        per_modality: int,
        seed: int,
        missing: Missing = "refuse",
        synthetic: Sequence[bool] | NDArray[np.bool_] | None = None,
        synthetic_share: float | None = None,
        names: Sequence[str] | None = None,
    ):
        """Checks the identities and groups their rows.

        `labels` int [N], `infrared` bool [N]; `identities` is P, `per_modality` K; `names` maps labels to pids in messages.
        `missing` treats an identity that lacks a modality: "refuse" raises, "drop" leaves it out, "visible" gives one
        without infrared 2K visible images (one without visible images still raises). `synthetic_share` draws that fraction
        of P (rounded) from identities that have a synthetic image (`synthetic` bool [N]) and the rest from those that have
        none; None draws from all alike.
        Raises `InputError` when a modality is missing, labels are not within `names` (0.. without them), or there are
        fewer identities than P.
        """
        labels, infrared = np.asarray(labels, np.int64), np.asarray(infrared, bool)
        _check(labels, infrared, identities, per_modality, None if names is None else len(names))
        self.identities, self.per_modality, self.seed = identities, per_modality, seed
        self._names = names
        present = np.unique(labels)
        self._visible = _rows_by_label(labels, np.flatnonzero(~infrared), present)
        self._infrared = _rows_by_label(labels, np.flatnonzero(infrared), present)
        usable, self.dropped = self._usable(missing)
        made = np.unique(labels[np.asarray(synthetic, bool)]) if synthetic is not None else np.array([], np.int64)
        self._kinds = usable, usable[~np.isin(usable, made)], usable[np.isin(usable, made)]  # all, real, synthetic
        self._starts, self._groups = [0], [self._split(synthetic_share)]  # each phase's first step and identities
        kept = np.isin(labels, usable)
        most = max(int((kept & infrared).sum()), int((kept & ~infrared).sum()))  # AGW's epoch: the larger modality
        self.steps_per_epoch = max(1, -(-most // (identities * per_modality)))

    def follow(self, share: Callable[[int], float], total: int) -> None:
        """Sets the fraction of synthetic identities of each of `total` steps to `share(step)`.

        Consecutive steps with an equal count are a phase with its own passes over the identities. Raises `InputError` for
        too few real or synthetic identities at any step.
        """
        counts = [round(share(step) * self.identities) for step in range(total)]
        self._starts = [step for step in range(total) if step == 0 or counts[step] != counts[step - 1]]
        self._groups = [self._split(share(step)) for step in self._starts]

    def batch(self, step: int) -> Index:
        """Returns the rows of batch number `step` (from 0), int64 [P * 2K]: by identity, visible before infrared."""
        rows = []
        for label in self._identities_at(step):
            rng = np.random.default_rng([self.seed, 1, step, label])
            visible, infrared, k = self._visible[label], self._infrared[label], self.per_modality
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
            rng = np.random.default_rng([self.seed, 0, number, passes, *([phase] if phase else [])])
            order = rng.permutation(members)
            chosen += [int(i) for i in order[place * count : (place + 1) * count]]
        return chosen

    def _usable(self, missing: Missing) -> tuple[Index, tuple[str, ...]]:
        no_infrared = [i for i, rows in self._infrared.items() if not len(rows)]
        no_visible = [i for i, rows in self._visible.items() if not len(rows)]
        lacking = sorted(no_visible if missing == "visible" else no_infrared + no_visible)
        if lacking and missing != "drop":
            remedy = "add images of the missing modality or choose missing='drop'"
            if not no_visible:
                remedy += " or 'visible'"
            raise InputError(
                f"{len(lacking)} of {len(self._visible)} identities lack a modality (no infrared: "
                f"{self._list(no_infrared)}; no visible: {self._list(no_visible)}); {remedy}"
            )
        usable = np.setdiff1d(np.array(list(self._visible), np.int64), np.array(lacking, np.int64))
        if len(usable) < self.identities:
            raise InputError(
                f"a batch needs {self.identities} identities, got {len(usable)} (dropped {len(lacking)}); lower "
                "--identities or add people"
            )
        return usable, tuple(self._name(i) for i in lacking)

    def _split(self, share: float | None) -> list[tuple[Index, int]]:
        """Groups of identities and how many of each go into a batch."""
        usable, *groups = self._kinds
        if share is None:
            return [(usable, self.identities)]
        from_synthetic = round(share * self.identities)
        counts = [self.identities - from_synthetic, from_synthetic]
        for kind, members, count in zip(("real", "synthetic"), groups, counts, strict=True):
            if len(members) < count:
                raise InputError(
                    f"synthetic_share {share:g} needs {count} {kind} identities a batch, got {len(members)}; change it"
                )
        return [(members, count) for members, count in zip(groups, counts, strict=True) if count]

    def _name(self, label: int) -> str:
        return str(label) if self._names is None else self._names[label]

    def _list(self, labels: Sequence[int], limit: int = 5) -> str:
        shown = ", ".join(self._name(i) for i in sorted(labels)[:limit]) or "none"
        return shown + (f" and {len(labels) - limit} more" if len(labels) > limit else "")


def _rows_by_label(labels: Index, rows: Index, present: Index) -> dict[int, Index]:
    """The `rows` of each of the labels `present`, in order; empty for a label without any."""
    rows = rows[np.argsort(labels[rows], kind="stable")]
    first, last = (np.searchsorted(labels[rows], present, side) for side in ("left", "right"))
    return {int(label): rows[a:b] for label, a, b in zip(present, first, last, strict=True)}


def _draw(rng: np.random.Generator, rows: Index, count: int) -> Index:
    return rng.choice(rows, count, replace=len(rows) < count)


def _check(labels: Index, infrared: NDArray[np.bool_], identities: int, per_modality: int, classes: int | None) -> None:
    if labels.shape != infrared.shape or labels.ndim != 1 or not len(labels):
        raise InputError(f"labels and infrared must be equally long lists, got {labels.shape} and {infrared.shape}")
    if labels.min() < 0:
        raise InputError(f"labels must be 0 or more, got {labels.min()}")
    if classes is not None and labels.max() >= classes:
        raise InputError(
            f"labels must be within 0..{classes - 1} for {classes} identities, got {labels.max()}; relabel merged data sets"
        )
    if identities < 2 or per_modality < 1:
        raise InputError(
            f"a batch needs at least 2 identities and 1 image of each kind, got {identities} and {per_modality}"
        )
