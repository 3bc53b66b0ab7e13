"""One training of a comparison: made, scored, and known again when it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dive_fast.io import atomic_path, canonical_json, read_json, write_json
from dive_fast.reid.comparison.side_by_side import count_step
from dive_fast.reid.data.dataset import ImageSet, load_images
from dive_fast.reid.evaluation.evaluate import Labels, ReidResult, embed, result_of
from dive_fast.reid.evaluation.metrics import score_trials, summary
from dive_fast.reid.evaluation.protocols import Permutations, Protocol, draw_trials, drawn
from dive_fast.reid.training.checkpoint import WEIGHTS, finished, load_model
from dive_fast.reid.training.config import ReidConfig, config_from_dict
from dive_fast.reid.training.train import fit
from dive_fast.types import InputError, Sample, from_dict, to_dict

F32 = NDArray[np.float32]
RESULT, QUERIES = "result.json", "queries.safetensors"
_UNSAID = {
    "direction": "ir-to-visible",
    "mode": "standard",
}  # what the first versions left out of a protocol: they had no other


@dataclass(frozen=True)
class Sides:
    """What every run is scored on; `facts` identify it."""

    query: tuple[Sample, ...]
    gallery: tuple[Sample, ...]
    protocol: Protocol
    permutations: Permutations | None
    dataset: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One arm with one seed: all that a process needs to train and score it.

    Its folder holds a checkpoint, each query's AP and, last, `result.json`.
    """

    arm: str
    samples: tuple[Sample, ...]
    data: str
    config: ReidConfig
    folder: Path
    sides: Sides
    device: str
    added: tuple[str, ...]  # identities that not every arm has
    cache: Path | None = None  # folder of decoded images

    def facts(self) -> dict[str, Any]:
        """What identifies the training."""
        facts = {"config": to_dict(self.config), "data": self.data}
        shared = self.config.synthetic_share is None and self.config.synthetic_schedule is None
        return facts if shared else {**facts, "added": list(self.added)}

    def known(self) -> ReidResult | None:
        """The result that is there already; one of another training or another test raises `InputError`."""
        path = self.folder / RESULT
        if not path.exists():
            return None
        stored = read_json(path, "reid result")
        if not isinstance(stored, dict) or not same_run(stored.get("run"), {**self.facts(), **self.sides.facts}):
            raise InputError(f"{path} is of another config, other images or another protocol; choose another out")
        return from_dict(ReidResult, stored.get("result"), str(path))

    def aps(self) -> NDArray[np.float64] | None:
        """Each query's AP in 0..1, float64 [Q], the mean over trials, NaN for one without a match; None if not there."""
        path = self.folder / QUERIES
        result = self.known()
        if result is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as stream:
                checkpoint, found = (stream.metadata() or {}).get("checkpoint"), stream.get_tensor("ap")
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path} is damaged ({error}); delete it and rerun: only the scoring is repeated"
            ) from error
        if checkpoint != result.checkpoint or found.ndim != 2 or found.shape[1] != len(self.sides.query):
            raise InputError(f"{path} is of another checkpoint; delete it and rerun: only the scoring is repeated")
        return mean_known(found)

    def done(self) -> bool:
        """Whether nothing is left to do.

        Results of older versions have no APs; a checkpoint that is still there gives them.
        """
        if self.known() is None:
            return False
        return (self.folder / QUERIES).is_file() or not (self.folder / WEIGHTS).is_file()


def same_run(stored: Any, run: dict[str, Any]) -> bool:
    """Whether a result was made by `run`; what the version that wrote it did not know of has its default now."""
    if not isinstance(stored, dict):
        return False
    try:
        config = to_dict(config_from_dict(stored.get("config"), RESULT))
    except InputError:  # fields or values that this version does not have
        return False
    protocol = stored.get("protocol")
    protocol = {**_UNSAID, **protocol} if isinstance(protocol, dict) else None
    return canonical_json({**stored, "config": config, "protocol": protocol}) == canonical_json(run)


def mean_known(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mean over the first axis of what is not NaN; NaN where everything is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
    count = known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def carry_out(run: Run, progress: bool = False) -> None:
    """Trains what is not trained yet, scores it and writes `queries.safetensors` and `result.json`."""
    size = (run.config.model.height, run.config.model.width)
    if not finished(run.folder, run.facts()):
        images = decoded(run.data, run.samples, size, run.cache)
        fit(
            images, run.config, run.folder, run=run.facts(), device=run.device, progress=progress, on_step=count_step,
            added=run.added,
        )  # fmt: skip
    sides = run.sides
    model, _, record = load_model(run.folder, run.device)
    features = [
        embed(model, decoded(sides.facts[kind], getattr(sides, kind), size, run.cache)) for kind in ("query", "gallery")
    ]
    result, aps = score_run(features[0], features[1], sides, record["sha256"])
    with atomic_path(run.folder / QUERIES) as path:
        save_file({"ap": aps}, path, {"checkpoint": record["sha256"]})
    write_json(run.folder / RESULT, {"run": {**run.facts(), **sides.facts}, "result": to_dict(result)})


def score_run(query: F32, gallery: F32, sides: Sides, checkpoint: str) -> tuple[ReidResult, F32]:
    """The result of unit features [Q, D] and [G, D] (averaged with their mirror images'), and each query's AP in 0..1.

    APs are float32 [trials, Q], NaN where a query has no match or was not drawn.
    """
    protocol, labels = sides.protocol, Labels.of(sides.query, sides.gallery)
    trials = drawn(draw_trials(sides.query, sides.gallery, protocol, sides.permutations), protocol)
    scores = score_trials(
        lambda part: 1 - query[part] @ gallery.T, labels.query_ids, labels.gallery_ids, labels.query_cams,
        labels.gallery_cams, trials=trials, protocol=protocol.rule,
    )  # fmt: skip
    metrics = [summary(one, protocol=protocol.rule) for one in scores]
    result = result_of(metrics, labels, trials, protocol, checkpoint=checkpoint, dataset=sides.dataset, flip=True)
    aps = np.full((len(trials), len(query)), np.nan, np.float32)
    for row, (trial, one) in enumerate(zip(trials, scores, strict=True)):
        aps[row, slice(None) if trial.query is None else np.asarray(trial.query)] = one.ap
    return result, aps


_decoded: dict[tuple[str, tuple[int, int]], ImageSet] = {}


def decoded(data: str, samples: Sequence[Sample], size: tuple[int, int], cache: Path | None = None) -> ImageSet:
    """Images by their fingerprint `data`; the last three sets are kept: both sides, and the arm whose seeds follow."""
    key = (data, size)
    if key not in _decoded:
        while len(_decoded) > 2:
            _decoded.pop(next(iter(_decoded)))
        _decoded[key] = load_images(samples, *size, cache=cache)
    else:
        _decoded[key] = _decoded.pop(key)  # the freshest stand last
    return _decoded[key]


def forget_images() -> None:
    """Gives the memory of `decoded` back."""
    _decoded.clear()
