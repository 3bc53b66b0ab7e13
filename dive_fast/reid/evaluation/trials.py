"""RegDB's ten trials: one model per trial, trained and tested on that trial's lists, and statistics over the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from dive_fast.data.sets import SetSpec, read_set
from dive_fast.io import canonical_json, sha256_bytes, write_json
from dive_fast.json_files import read_json
from dive_fast.reid.data.dataset import fingerprint
from dive_fast.reid.evaluation.evaluate import extract
from dive_fast.reid.evaluation.protocols import REGDB_TRIALS, Direction, Protocol
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.reid.evaluation.results import ReidResult, over_trials, read_result
from dive_fast.reid.evaluation.task import RetrievalTask, check_sides
from dive_fast.reid.training.checkpoint import read_record
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.train import train_reid
from dive_fast.types import InputError, Sample, to_dict

TRIALS = tuple(range(1, REGDB_TRIALS + 1))
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
RESULTS, REPORT = "results.json", "trials.json"


@dataclass(frozen=True)
class TrialsReport:
    """The outcome of `run_trials`, also written as `trials.json`.

    `results` has a record per direction: means and standard deviations over the models, whose scores are in `per_trial` in
    the order of `trials`; its `checkpoint` is the SHA-256 of the models' `checkpoints`, one after the other.
    """

    dataset: str
    trials: list[int]
    checkpoints: list[str]
    config: dict[str, Any]
    results: list[ReidResult]

    def describe(self) -> str:
        """Returns the results' lines and each model's mAP."""
        lines = [result.describe() for result in self.results]
        for result in self.results:
            maps = zip(self.trials, result.per_trial["map"], strict=True)
            shown = ", ".join(f"{trial}: {value:.2f}" for trial, value in maps)
            lines.append(f"mAP by trial, {result.direction}: {shown}")
        return "\n".join(lines)


TrialImages = tuple[list[Sample], list[Sample], list[Sample]]  # train, infrared test and visible test images


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
    """Trains `config` on each trial's train lists, in `out/trial-<n>`, and tests that model on the trial's test lists.

    `spec` is RegDB's set; its split and trial are ignored. A rerun keeps trained models and resumes a stopped training;
    `out/trials.json` is written last. Raises `InputError` for another data set, unknown trials, an identity in both halves
    of a trial, and a folder of other trainings.
    """
    if spec.layout != "regdb":
        raise InputError(f"only RegDB (regdb:PATH) has a model per trial, got {spec.layout!r}; use dive-fast reid eval")
    if not trials or len(set(trials)) < len(trials) or not set(trials) <= set(TRIALS):
        raise InputError(f"trials must be different numbers from 1 to {REGDB_TRIALS}, got {list(trials)}")
    if not directions or len(set(directions)) < len(directions):
        raise InputError(f"directions must be one or both of {', '.join(DIRECTIONS)}, got {list(directions)}")
    out = Path(out)
    images = [_read(spec, number) for number in trials]  # a wrong list raises before hours of training
    protocols = [Protocol("regdb", direction=direction) for direction in directions]
    name = dataset or f"regdb:{spec.root}"
    results = []
    for number, (train, *sides) in zip(trials, images, strict=True):
        folder = out / f"trial-{number}"
        train_reid(train, config, folder, device=device, progress=progress)
        own = [replace(protocol, trial=number) for protocol in protocols]
        results.append(_results(folder, sides, own, name, rerank, device, progress))
    report = TrialsReport(
        dataset=name,
        trials=list(trials),
        checkpoints=[found[0].checkpoint for found in results],
        config=to_dict(config),
        results=[_combined(found) for found in zip(*results, strict=True)],
    )
    write_json(out / REPORT, to_dict(report))
    return report


def _read(spec: SetSpec, number: int) -> TrialImages:
    train, test = (read_set(replace(spec, split=split, trial=number)) for split in ("train", "test"))
    both = sorted({s.pid for s in train} & {s.pid for s in test})
    if both:
        raise InputError(
            f"{spec.root}: {len(both):,} identities of trial {number} are in its train and test lists, first {both[0]}"
        )
    infrared, visible = ([s for s in test if s.modality == kind] for kind in ("ir", "rgb"))
    check_sides(infrared, visible, Protocol("regdb", trial=number))
    return train, infrared, visible


def _results(
    folder: Path,
    sides: Sequence[list[Sample]],
    protocols: Sequence[Protocol],
    dataset: str,
    rerank: RerankConfig | None,
    device: str,
    progress: bool,
) -> list[ReidResult]:
    """One model's result for each protocol; stored results of the same weights, images and settings are reused."""
    record = read_record(folder)
    run = {
        "checkpoint": record.get("best", record)["sha256"],
        "test": [fingerprint(side) for side in sides],
        "protocols": [protocol.metadata() for protocol in protocols],
        "rerank": None if rerank is None else to_dict(rerank),
        "dataset": dataset,
    }
    path = folder / RESULTS
    stored = read_json(path, "results of a trial") if path.exists() else None
    if isinstance(stored, dict) and canonical_json(stored.get("run")) == canonical_json(run):
        rows = stored.get("results")
        if not isinstance(rows, list) or len(rows) != len(protocols):
            raise InputError(f"{path} holds no result for each of its {len(protocols)} directions; delete it and rerun")
        return [read_result(row, str(path), one, dataset, rerank) for row, one in zip(rows, protocols, strict=True)]
    infrared, visible = sides
    features = extract(folder, infrared, visible, device=device, progress=progress)
    by_kind = {"ir": (infrared, features.query), "rgb": (visible, features.gallery)}
    results = []
    for protocol in protocols:
        (query, query_f), (gallery, gallery_f) = by_kind[protocol.query_modality], by_kind[protocol.gallery_modality]
        task = RetrievalTask.from_samples(query, gallery, protocol, dataset=dataset)
        scores = task.score_features(query_f, gallery_f, rerank)
        results.append(task.result(scores, features.checkpoint, flip=True, rerank=rerank))
    write_json(path, {"run": run, "results": [to_dict(result) for result in results]})
    return results


def _combined(results: Sequence[ReidResult]) -> ReidResult:
    """One record of several models' results, one a trial."""
    first = results[0]
    values = {name: [result.per_trial[name][0] for result in results] for name in first.per_trial}
    protocol = {key: value for key, value in first.protocol.items() if key != "trial"}
    return replace(
        first,
        protocol={**protocol, "trials": len(results), "models": len(results)},
        queries=min(result.queries for result in results),
        gallery=min(result.gallery for result in results),
        valid_queries=min(result.valid_queries for result in results),
        source=f"{len(results)} checkpoints",
        checkpoint=sha256_bytes("".join(result.checkpoint for result in results).encode()),
        **over_trials(values),
    )
