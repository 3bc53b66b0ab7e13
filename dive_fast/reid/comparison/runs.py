"""Runs of a comparison: trained, scored, and recognised on a rerun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from dive_fast.io import atomic_write, canonical_json, write_json
from dive_fast.json_files import read_json
from dive_fast.progress import log
from dive_fast.reid.comparison.worker_pool import count_step, run_all
from dive_fast.reid.data.dataset import ImageSet, fingerprint, load_images
from dive_fast.reid.evaluation.evaluate import embed
from dive_fast.reid.evaluation.protocols import Permutations, Protocol
from dive_fast.reid.evaluation.results import ReidResult, read_result
from dive_fast.reid.evaluation.task import RetrievalTask
from dive_fast.reid.training.checkpoint import finished, load_model
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.train import fit
from dive_fast.types import InputError, Sample, to_dict

RESULT, QUERIES = "result.json", "queries.safetensors"


@dataclass(frozen=True)
class HeldOut:
    """What every run is scored on; `identity` tells it from other test sides."""

    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    task: RetrievalTask
    identity: dict[str, Any]

    @classmethod
    def from_samples(
        cls,
        query: Sequence[Sample],
        gallery: Sequence[Sample],
        protocol: Protocol,
        permutations: Permutations | None,
        dataset: str,
    ) -> HeldOut:
        """Returns the test sides under a protocol; raises `InputError` for sides that do not fit it."""
        task = RetrievalTask.from_samples(query, gallery, protocol, permutations, dataset)
        identity = {"query": fingerprint(query), "gallery": fingerprint(gallery), "protocol": protocol.metadata()}
        return cls(tuple(query), tuple(gallery), task, identity)


@dataclass(frozen=True)
class Run:
    """One arm with one seed: all that a process needs to train and score it.

    Its folder holds a checkpoint, each query's AP and, written last, `result.json`.
    """

    arm: str
    samples: tuple[Sample, ...]
    data: str  # fingerprint of the samples
    config: ReidConfig
    folder: Path
    test: HeldOut
    device: str
    added: tuple[str, ...]  # identities that not every arm has
    cache: Path | None = None  # folder of decoded images

    def training(self) -> dict[str, Any]:
        """Returns what identifies the training."""
        found = {"config": to_dict(self.config), "data": self.data}
        shared = self.config.synthetic_fraction is None and self.config.synthetic_schedule is None
        return found if shared else {**found, "added": list(self.added)}

    def done(self) -> bool:
        """Returns whether the run is scored; raises `InputError` for a result of another training or another test."""
        path = self.folder / RESULT
        if not path.exists():
            return False
        stored = read_json(path, "reid result")
        run = {**self.training(), **self.test.identity}
        if not isinstance(stored, dict) or canonical_json(stored.get("run")) != canonical_json(run):
            raise InputError(f"{path} is of another config, other images or another protocol; choose another --out")
        return (self.folder / QUERIES).is_file()

    def result(self) -> ReidResult:
        """Returns the result of a run that is done."""
        path, task = self.folder / RESULT, self.test.task
        return read_result(read_json(path, "reid result").get("result"), str(path), task.protocol, task.dataset)

    def aps(self) -> NDArray[np.float64]:
        """Returns each query's AP in 0..1, float64 [Q], the mean over trials, NaN for a query without a match."""
        path = self.folder / QUERIES
        try:
            with safe_open(path, framework="numpy") as stream:
                checkpoint, found = (stream.metadata() or {}).get("checkpoint"), stream.get_tensor("ap")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged ({error}); delete it and rerun") from error
        if checkpoint != self.result().checkpoint or found.ndim != 2 or found.shape[1] != len(self.test.query):
            raise InputError(f"{path} is of another checkpoint; delete it and rerun")
        known = ~np.isnan(found)
        total, count = np.where(known, found, 0).sum(axis=0, dtype=np.float64), known.sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def without_added(config: ReidConfig) -> ReidConfig:
    """Returns the config of an arm without identities that other arms lack: it draws from all its identities alike."""
    return replace(config, synthetic_fraction=None, synthetic_schedule=None)


def carry_out_missing(runs: Sequence[Run], workers: int, progress: bool) -> None:
    """Carries out the runs that are not done, `workers` at once; raises the first error."""
    missing = [run for run in runs if not run.done()]
    if workers > 1 and len(missing) > 1:
        steps = [run.config.steps for run in missing]
        total = None if None in steps else sum(step or 0 for step in steps)
        run_all(missing, carry_out, min(workers, len(missing)), total, progress)
    else:
        try:
            for run in missing:
                if progress:
                    log(f"{run.arm}, {run.folder.name}")
                carry_out(run, progress)
        finally:
            decoded.cache_clear()
    for run in missing if progress else ():
        result = run.result()
        log(f"{run.arm}, {run.folder.name}: mAP {result.map:.2f}, rank-1 {result.rank1:.2f}")


def carry_out(run: Run, progress: bool = False) -> None:
    """Trains the run unless a checkpoint is there, scores it and writes `queries.safetensors` and `result.json`."""
    size = (run.config.model.height, run.config.model.width)
    training, test = run.training(), run.test
    if not finished(run.folder, training):
        images = decoded(run.samples, size, run.cache)
        options: dict[str, Any] = {
            "device": run.device,
            "progress": progress,
            "on_step": count_step,
            "added": run.added,
        }
        fit(images, run.config, run.folder, run=training, **options)
    model, _, record = load_model(run.folder, run.device)
    query, gallery = (embed(model, decoded(side, size, run.cache)) for side in (test.query, test.gallery))
    scores = test.task.score_features(query, gallery)
    aps = np.full((len(scores), len(query)), np.nan, np.float32)  # NaN also for a query that a trial did not draw
    for row, trial, one in zip(aps, test.task.trials, scores, strict=True):
        row[slice(None) if trial.query is None else np.asarray(trial.query)] = one.ap
    result = test.task.result(scores, record["sha256"], flip=True)
    atomic_write(run.folder / QUERIES, save_arrays({"ap": aps}, {"checkpoint": record["sha256"]}))
    write_json(run.folder / RESULT, {"run": {**training, **test.identity}, "result": to_dict(result)})


@lru_cache(maxsize=3)  # both test sides, and the arm whose seeds follow each other
def decoded(samples: tuple[Sample, ...], size: tuple[int, int], cache: Path | None = None) -> ImageSet:
    """Returns the decoded images of `samples`."""
    return load_images(samples, *size, cache=cache)
