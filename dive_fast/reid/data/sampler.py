"""Batches of P identities with K visible and K infrared images each, the same for the same seed and step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dive_fast.types import InputError

Missing = Literal["refuse", "drop", "visible"]
MISSING: tuple[Missing, ...] = ("refuse", "drop", "visible")
Index = NDArray[np.int64]


class PairSampler:
    """P x (K + K) cross-modality batches (as AGW), drawn by step number, so that a resumed run goes on exactly.

    Each pass over the identities is a new permutation. Images repeat within a batch only when an identity has fewer
    than are needed. `dropped` names the identities that `missing="drop"` left out.
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
        """
        `labels` int [N], `infrared` bool [N]; `identities` is P, `per_modality` K; `names` maps labels to pids in messages.
        `missing` says what becomes of an identity that lacks a modality: "refuse" raises, "drop" leaves it out, "visible"
        gives one without infrared 2K visible images (one without visible images still raises).
        `synthetic_share` draws that share of P (rounded) from identities that have a synthetic image (`synthetic`
        bool [N]) and the rest from those that have none; None draws from all alike.
        Raises `InputError` when a modality is missing, labels are not within `names` (0.. without them), or there are
        fewer identities than P.
        """
        labels, infrared = np.asarray(labels, np.int64), np.asarray(infrared, bool)
        _check(labels, infrared, identities, per_modality, missing, None if names is None else len(names))
        self.identities, self.per_modality, self.seed = identities, per_modality, seed
        self._names = names
        present = np.unique(labels)
        self._visible = _rows_by_label(labels, np.flatnonzero(~infrared), present)
        self._infrared = _rows_by_label(labels, np.flatnonzero(infrared), present)
        usable, self.dropped = self._usable(missing)
        made = np.unique(labels[np.asarray(synthetic, bool)]) if synthetic is not None else np.array([], np.int64)
        self._kinds = usable, usable[~np.isin(usable, made)], usable[np.isin(usable, made)]  # all, real, synthetic
        self._starts, self._groups = (
            [0],
            [self._split(synthetic_share)],
        )  # of each phase: first step, and whom it draws from
        kept = np.isin(labels, usable)
        most = max(int((kept & infrared).sum()), int((kept & ~infrared).sum()))
        # AGW's epoch: as many images as the larger modality has.
        self.steps_per_epoch = max(1, -(-most // (identities * per_modality)))

    def follow(self, share: Callable[[int], float], total: int) -> None:
        """From now on the share of synthetic identities is that of the step, `share(step)`, for `total` steps.

        Steps of one count in a row are a phase, with passes over the identities of its own. Raises `InputError` when
        there are too few real or synthetic identities for the share at any step.
        """
        counts = [round(share(step) * self.identities) for step in range(total)]
        self._starts = [step for step in range(total) if step == 0 or counts[step] != counts[step - 1]]
        self._groups = [self._split(share(step)) for step in self._starts]

    def batch(self, step: int) -> Index:
        """Rows of batch number `step` (from 0), int64 [P * 2K]: identity after identity, visible before infrared."""
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
            order = np.random.default_rng([self.seed, 0, number, passes, *([phase] if phase else [])]).permutation(
                members
            )
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
            raise InputError(f"a batch needs {self.identities} identities, got {len(usable)} (dropped {len(lacking)}); "
                             "lower identities per batch or add people")  # fmt: skip
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
                raise InputError(f"synthetic_share {share:g} asks for {count} {kind} identities a batch, there are "
                                 f"{len(members)}; change synthetic_share")  # fmt: skip
        return [(members, count) for members, count in zip(groups, counts, strict=True) if count]

    def _name(self, label: int) -> str:
        return str(label) if self._names is None else self._names[label]

    def _list(self, labels: Sequence[int], limit: int = 5) -> str:
        shown = ", ".join(self._name(i) for i in sorted(labels)[:limit]) or "none"
        return shown + (f" and {len(labels) - limit} more" if len(labels) > limit else "")


def _rows_by_label(labels: Index, rows: Index, present: Index) -> dict[int, Index]:
    """Those of `rows` that carry each of the labels `present`, in order; empty for a label without any."""
    rows = rows[np.argsort(labels[rows], kind="stable")]
    first, last = (np.searchsorted(labels[rows], present, side) for side in ("left", "right"))
    return {int(label): rows[a:b] for label, a, b in zip(present, first, last, strict=True)}


def _draw(rng: np.random.Generator, rows: Index, count: int) -> Index:
    return rng.choice(rows, count, replace=len(rows) < count)


def _check(
    labels: Index, infrared: NDArray[np.bool_], identities: int, per_modality: int, missing: str, classes: int | None
) -> None:
    if labels.shape != infrared.shape or labels.ndim != 1 or not len(labels):
        raise InputError(f"labels and infrared must be equally long lists, got {labels.shape} and {infrared.shape}")
    if labels.min() < 0:
        raise InputError(f"labels must be 0 or more, got {labels.min()}")
    if classes is not None and labels.max() >= classes:
        raise InputError(f"labels must be within 0..{classes - 1} for {classes} identities, got {labels.max()}; were data "
                         "sets merged without relabelling?")  # fmt: skip
    if identities < 2 or per_modality < 1:
        raise InputError(f"a batch needs at least 2 identities and 1 image of each kind, got {identities} and "
                         f"{per_modality}")  # fmt: skip
    if missing not in MISSING:
        raise InputError(f"missing must be one of {MISSING}, got {missing!r}")
