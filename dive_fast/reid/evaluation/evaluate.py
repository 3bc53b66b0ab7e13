"""Retrieval quality of a trained model, with everything that a number needs to be compared with another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dive_fast.reid.data.dataset import ImageSet, load_images, normalise
from dive_fast.reid.evaluation.metrics import Drawn, RankMetrics, Rows, evaluate_trials
from dive_fast.reid.evaluation.protocols import WORDS, Permutations, Protocol, check_cameras, draw_trials, drawn
from dive_fast.reid.evaluation.rerank import RerankConfig, Reranked
from dive_fast.reid.evaluation.results import Labels, ReidResult, result_of
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.types import MODALITIES, InputError, Sample

__all__ = [
    "Extracted",
    "Labels",
    "ReidResult",
    "check_sides",
    "check_strangers",
    "embed",
    "evaluate_reid",
    "extract",
    "result_of",
    "score",
    "score_distances",
    "score_features",
    "seen_people",
]

F32 = NDArray[np.float32]
_CHUNK = 512  # images decoded at once: 64 MB at 288x144 pixels


def evaluate_reid(
    checkpoint: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    dataset: str = "pocket",
    permutations: Permutations | None = None,
    flip: bool = True,
    batch: int = 128,
    device: str = "cpu",
    progress: bool = True,
    rerank: RerankConfig | None = None,
    other_people: bool = False,
) -> ReidResult:
    """Embeds `query` and `gallery` samples, ranks by cosine distance and averages the trials.

    Both sides hold all that the protocol draws from. `flip` averages the embeddings of each image and its mirror image.
    Raises `InputError` for an empty side, a synthetic image, a wrong modality, samples of another data set, a gallery
    without the queries' people, and a checkpoint trained on test people, unless those are declared `other_people`.
    """
    check_sides(query, gallery, protocol)
    trials = draw_trials(query, gallery, protocol, permutations)
    features = extract(
        checkpoint, query, gallery, flip=flip, batch=batch, device=device, progress=progress, other_people=other_people
    )
    return score_features(
        features.query, features.gallery, Labels.of(query, gallery), drawn(trials, protocol), protocol,
        checkpoint=features.checkpoint, dataset=dataset, flip=flip, rerank=rerank, other_people=other_people,
    )  # fmt: skip


def check_sides(
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
) -> None:
    """Refuses what would make a number meaningless.

    Empty sides, files listed twice, images without a label, synthetic images, the wrong modality for the direction,
    samples of another data set than the protocol's.
    """
    words = {"ir": "infrared (ir)", "rgb": "visible (rgb)"}
    sides = (("query", query, protocol.query_modality), ("gallery", gallery, protocol.gallery_modality))
    for name, samples, modality in sides:
        if not samples:
            raise InputError(f"the {name} is empty; give it images of the test identities")
        unlabelled = next((s for s in samples if not s.pid or s.modality not in MODALITIES), None)
        if unlabelled:
            raise InputError(f"the {name} holds {unlabelled.path} without an identity or a modality; label every image")
        made = next((s for s in samples if s.source != "real"), None)
        if made:
            raise InputError(f"the {name} holds a synthetic image ({made.path}); evaluate on real ones only")
        wrong = next((s for s in samples if s.modality != modality), None)
        if wrong:
            raise InputError(
                f"the {name} holds a {wrong.modality} image ({wrong.path}); queries are {words[protocol.query_modality]}, "
                f"the gallery is {words[protocol.gallery_modality]}, as the protocol searches {WORDS[protocol.runs]}"
            )
        check_cameras(samples, protocol)
    twice = [path for path, count in Counter(s.path for s in [*query, *gallery]).items() if count > 1]
    if twice:
        raise InputError(f"query and gallery list {len(twice)} file(s) more than once, first {min(twice)}")


def seen_people(record: Mapping[str, Any]) -> set[str]:
    """Whom a checkpoint was trained on, or its best weights chosen on, by its `reid.json`."""
    return {*record["pids"], *record.get("validation", {}).get("people", ())}


def check_strangers(seen: Collection[str], query: Sequence[Sample], gallery: Sequence[Sample]) -> None:
    """Raises `InputError` when people of the test have been seen before, as by RegDB's model of another trial."""
    known = sorted(set(seen) & {s.pid for s in [*query, *gallery]})
    if known:
        raise InputError(
            f"the checkpoint was trained on {len(known):,} people of the test set, or its weights chosen on them (first "
            f"{', '.join(known[:3])}), so its scores would mean nothing; take the checkpoint of this split (RegDB: of this "
            "trial), or declare --other-people if they only share names"
        )


@dataclass(frozen=True)
class Extracted:
    """Unit embeddings float32 [N, D] of both sides, and the SHA-256 of the weights that made them."""

    query: F32
    gallery: F32
    checkpoint: str


def extract(
    checkpoint: Path | str,
    query: Sequence[Sample],
    gallery: Sequence[Sample],
    *,
    flip: bool = True,
    batch: int = 128,
    device: str = "cpu",
    progress: bool = True,
    other_people: bool = False,
) -> Extracted:
    """Features of both sides by a checkpoint, a chunk of images in memory at a time; see `evaluate_reid`."""
    model, config, record = load_model(checkpoint, device)
    if not other_people:
        check_strangers(seen_people(record), query, gallery)
    size = (config.model.height, config.model.width)
    chunk = batch * max(1, _CHUNK // batch)
    sides = []
    for name, samples in (("query images", query), ("gallery images", gallery)):
        bar = tqdm(total=len(samples), desc=name, unit="image", disable=not progress, leave=False)
        parts = []
        for start in range(0, len(samples), chunk):
            images = load_images(samples[start : start + chunk], *size)
            parts.append(embed(model, images, flip, batch))
            bar.update(len(images))
        bar.close()
        sides.append(np.concatenate(parts))
    return Extracted(sides[0], sides[1], record["sha256"])


def score(
    model: ReidModel,
    query: ImageSet,
    gallery: ImageSet,
    trials: Sequence[Sequence[int]],
    protocol: Protocol,
    *,
    checkpoint: str,
    dataset: str,
    flip: bool = True,
    batch: int = 128,
    rerank: RerankConfig | None = None,
) -> ReidResult:
    """`evaluate_reid` for a model and images that are in memory already; `trials` as `protocols.draw_trials` gives them."""
    features = embed(model, query, flip, batch), embed(model, gallery, flip, batch)
    labels = Labels.of(query.samples, gallery.samples)
    return score_features(
        *features,
        labels,
        drawn(trials, protocol),
        protocol,
        checkpoint=checkpoint,
        dataset=dataset,
        flip=flip,
        rerank=rerank,
    )


def score_features(
    query: NDArray[Any],
    gallery: NDArray[Any],
    labels: Labels,
    trials: Sequence[Drawn],
    protocol: Protocol,
    *,
    checkpoint: str,
    dataset: str,
    flip: bool = False,
    rerank: RerankConfig | None = None,
    source: str = "checkpoint",
    other_people: bool = False,
) -> ReidResult:
    """Scores unit features [Q, D] and [G, D] by cosine distance, made for a few queries at a time.

    Re-ranking looks at one trial's images only, so each trial has distances of its own.
    """
    if rerank is None:
        metrics = _metrics(lambda part: 1 - query[part] @ gallery.T, labels, trials, protocol)
    else:
        metrics = [_reranked(query, gallery, labels, one, protocol, rerank) for one in trials]
    return result_of(
        metrics, labels, trials, protocol, checkpoint=checkpoint, dataset=dataset, flip=flip, rerank=rerank, source=source,
        other_people=other_people,
    )  # fmt: skip


def score_distances(
    distances: NDArray[Any],
    labels: Labels,
    trials: Sequence[Drawn],
    protocol: Protocol,
    *,
    checkpoint: str,
    dataset: str,
) -> ReidResult:
    """Scores distances [Q, G] that other code made; smaller is nearer."""
    metrics = _metrics(distances, labels, trials, protocol)
    return result_of(metrics, labels, trials, protocol, checkpoint=checkpoint, dataset=dataset, source="distances")


def _metrics(
    distances: NDArray[Any] | Rows, labels: Labels, trials: Sequence[Drawn], protocol: Protocol
) -> list[RankMetrics]:
    return evaluate_trials(
        distances, labels.query_ids, labels.gallery_ids, labels.query_cams, labels.gallery_cams, trials=trials,
        protocol=protocol.rule,
    )  # fmt: skip


def _reranked(
    query: NDArray[Any], gallery: NDArray[Any], labels: Labels, trial: Drawn, protocol: Protocol, config: RerankConfig
) -> RankMetrics:
    rows = np.arange(len(query)) if trial.query is None else np.asarray(trial.query, np.intp)
    columns = np.arange(len(gallery)) if trial.gallery is None else np.asarray(trial.gallery, np.intp)
    own = Labels(
        labels.query_ids[rows], labels.gallery_ids[columns], labels.query_cams[rows], labels.gallery_cams[columns]
    )
    return _metrics(Reranked(query[rows], gallery[columns], config).rows, own, [Drawn()], protocol)[0]


@torch.inference_mode()
def embed(model: ReidModel, images: ImageSet, flip: bool = True, batch: int = 128, progress: str | None = None) -> F32:
    """Unit embeddings float32 [N, D] of an image set, in its order."""
    device = next(model.parameters()).device
    parts = []
    for start in tqdm(range(0, len(images), batch), desc=progress, unit="batch", disable=progress is None, leave=False):
        rows = slice(start, start + batch)
        pixels, infrared = normalise(images.images[rows].to(device)), images.infrared[rows].to(device)
        features = model.embed(pixels, infrared)
        if flip:
            features = torch.nn.functional.normalize(features + model.embed(pixels.flip(3), infrared))
        parts.append(features.cpu().numpy())
    return np.concatenate(parts)
