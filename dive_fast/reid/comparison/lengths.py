"""One arm trained for several lengths: does mAP still rise where a comparison stops training?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dive_fast.reid.comparison.runs import HeldOut, Run, carry_out_missing, without_added
from dive_fast.reid.data.dataset import fingerprint
from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.reid.training.config import ReidConfig
from dive_fast.types import Sample


def train_lengths(
    arm: str,
    samples: Sequence[Sample],
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    config: ReidConfig,
    lengths: Sequence[int],
    out: Path,
    *,
    workers: int = 1,
    progress: bool = True,
) -> dict[int, float]:
    """Returns an arm's mAP in percent after each of `lengths` steps, each trained with its own complete schedule.

    `config` is that of one seed of a comparison in `out`, whose run of this arm, seed and length is not repeated; the
    others stay in `out/<arm>/seed-<n>-steps-<length>/`. The arm is the one whose identities all arms share.
    Trains on the CPU and scores under the pocket protocol. Raises `InputError` for an `out` of another comparison.
    """
    test, data, runs = HeldOut.from_samples(query, gallery, Protocol(), None, "pocket"), fingerprint(samples), []
    for steps in lengths:
        own = replace(without_added(config), steps=steps)
        suffix = "" if steps == config.steps else f"-steps-{steps}"
        folder = out / arm / f"seed-{config.seed}{suffix}"
        runs.append(Run(arm, tuple(samples), data, own, folder, test, "cpu", ()))
    carry_out_missing(runs, workers, progress)
    return {steps: run.result().map for steps, run in zip(lengths, runs, strict=True)}
