"""RegDB's ten trials: a model each, trained and tested on that trial's people, and the mean and deviation over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dive_fast.data.sets import SetSpec, read_set
from dive_fast.io import canonical_json, read_json, sha256_bytes, write_json
from dive_fast.reid.data.dataset import fingerprint
from dive_fast.reid.evaluation.evaluate import Labels, ReidResult, check_sides, extract, score_features
from dive_fast.reid.evaluation.metrics import Drawn
from dive_fast.reid.evaluation.protocols import REGDB_TRIALS, Direction, Protocol
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.reid.evaluation.results import over_trials
from dive_fast.reid.training.checkpoint import RECORD
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.train import train_reid
from dive_fast.types import InputError, Sample, from_dict, to_dict

TRIALS = tuple(range(1, REGDB_TRIALS + 1))
DIRECTIONS: tuple[Direction, ...] = ("ir-to-visible", "visible-to-ir")
RESULTS, REPORT = "results.json", "trials.json"


@dataclass(frozen=True)
class TrialsReport:
    """What `run_trials` found, also written as `trials.json`.

    `results` has a record a direction: means and deviations over the models, whose scores are in `per_trial` in the order
    of `trials`; its `checkpoint` is the SHA-256 of the models' `checkpoints`, one after the other.
    """

    dataset: str
    trials: list[int]
    checkpoints: list[str]
    config: dict[str, Any]
    results: list[ReidResult]

    def text(self) -> str:
        """The results' lines, and each model's mAP."""
        lines = [result.line() for result in self.results]
        for result in self.results:
            maps = ", ".join(
                f"{trial}: {value:.2f}" for trial, value in zip(self.trials, result.per_trial["map"], strict=True)
            )
            lines.append(f"mAP by trial, {result.direction}: {maps}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Trial:
    """The people of one trial."""

    number: int
    train: list[Sample]
    infrared: list[Sample]
    visible: list[Sample]


def run_trials(
    spec: SetSpec,
    config: ReidConfig,
    out: Path | str,
    *,
    trials: Sequence[int] = TRIALS,
    directions: Sequence[Direction] = DIRECTIONS,
    rerank: RerankConfig | None = None,
    dataset: str | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> TrialsReport:
    """Trains `config` on each trial's train lists, in `out/trial-<n>`, and tests that model on that trial's test lists.

    `spec` is RegDB's set; its split and trial are not looked at. A trained model is kept and not trained again, a stopped
    training goes on; `out/trials.json` comes last. Raises `InputError` for another data set, unknown trials, lists of
    which a person is in both halves, and a folder of other trainings.
    """
    if spec.layout != "regdb":
        raise InputError(
            f"trials with a model each are RegDB's (regdb:PATH), got {spec.layout!r}; use dive-fast reid eval"
        )
    if not trials or len(set(trials)) < len(trials) or not set(trials) <= set(TRIALS):
        raise InputError(f"trials must be different numbers from 1 to {REGDB_TRIALS}, got {list(trials)}")
    if not directions or len(set(directions)) < len(directions):
        raise InputError(f"directions must be one or both of {', '.join(DIRECTIONS)}, got {list(directions)}")
    out = Path(out)
    read = [_read(spec, number) for number in trials]  # a wrong list is said before hours of training
    protocols = [Protocol("regdb", direction=direction) for direction in directions]
    name = dataset or f"regdb:{spec.root}"
    results = []
    for trial in read:
        folder = out / f"trial-{trial.number}"
        train_reid(trial.train, config, folder, device=device, progress=progress)
        own = [replace(protocol, trial=trial.number) for protocol in protocols]
        results.append(_results(folder, trial, own, name, rerank, device, progress))
    report = TrialsReport(
        dataset=name,
        trials=list(trials),
        checkpoints=[found[0].checkpoint for found in results],
        config=to_dict(config),
        results=[_combined([found[i] for found in results]) for i in range(len(protocols))],
    )
    write_json(out / REPORT, to_dict(report))
    return report


def _read(spec: SetSpec, number: int) -> _Trial:
    train, test = (read_set(replace(spec, split=split, trial=number)) for split in ("train", "test"))
    both = sorted({s.pid for s in train} & {s.pid for s in test})
    if both:
        raise InputError(
            f"{spec.root}: {len(both):,} people of trial {number} are in its train and in its test lists, first {both[0]}; "
            "copy the lists of RegDB again"
        )
    sides = {kind: [s for s in test if s.modality == kind] for kind in ("ir", "rgb")}
    check_sides(sides["ir"], sides["rgb"], Protocol("regdb", trial=number))
    return _Trial(number, train, sides["ir"], sides["rgb"])


def _results(
    folder: Path,
    trial: _Trial,
    protocols: Sequence[Protocol],
    dataset: str,
    rerank: RerankConfig | None,
    device: str,
    progress: bool,
) -> list[ReidResult]:
    """One model's result for each protocol; results of the same weights, images and settings are read if they are there."""
    record = read_json(folder / RECORD, "reid checkpoint")
    run = {
        "checkpoint": record.get("best", record)["sha256"],
        "test": [fingerprint(trial.infrared), fingerprint(trial.visible)],
        "protocols": [protocol.facts() for protocol in protocols],
        "rerank": None if rerank is None else to_dict(rerank),
        "dataset": dataset,
    }
    path = folder / RESULTS
    stored = read_json(path, "results of a trial") if path.exists() else None
    if isinstance(stored, dict) and canonical_json(stored.get("run")) == canonical_json(run):
        return [from_dict(ReidResult, row, str(path)) for row in stored["results"]]
    features = extract(folder, trial.infrared, trial.visible, device=device, progress=progress)
    by_kind = {"ir": (trial.infrared, features.query), "rgb": (trial.visible, features.gallery)}
    results = []
    for protocol in protocols:
        (query, query_f), (gallery, gallery_f) = by_kind[protocol.query_modality], by_kind[protocol.gallery_modality]
        results.append(
            score_features(
                query_f, gallery_f, Labels.of(query, gallery), [Drawn()], protocol, checkpoint=features.checkpoint,
                dataset=dataset, flip=True, rerank=rerank,
            )
        )  # fmt: skip
    write_json(path, {"run": run, "results": [to_dict(result) for result in results]})
    return results


def _combined(results: Sequence[ReidResult]) -> ReidResult:
    """One record of several models' results, one a trial."""
    first = results[0]
    values = {name: [result.per_trial[name][0] for result in results] for name in first.per_trial}
    facts = {key: value for key, value in first.protocol.items() if key != "trial"}
    return replace(
        first,
        protocol={**facts, "trials": len(results), "models": len(results)},
        queries=min(result.queries for result in results),
        gallery=min(result.gallery for result in results),
        valid_queries=min(result.valid_queries for result in results),
        source=f"{len(results)} checkpoints",
        checkpoint=sha256_bytes("".join(result.checkpoint for result in results).encode()),
        **over_trials(values),
    )
