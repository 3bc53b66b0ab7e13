"""Retrieval quality of a trained model, with everything that a number needs to be compared with another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dive_fast.reid.checkpoint import load_model
from dive_fast.reid.dataset import ImageSet, load_images, normalise
from dive_fast.reid.metrics import RankMetrics, evaluate
from dive_fast.reid.model import ReidModel
from dive_fast.reid.protocols import Permutations, Protocol, camera_number, trial_galleries
from dive_fast.types import InputError, Sample


@dataclass(frozen=True)
class ReidResult:
    """Scores in percent, mean over the trials (`*_deviation`: over trials, 0 for one), and how they came about."""

    dataset: str
    protocol: dict[str, str | int]  # protocol, search, shots, trials, draw
    rule: str
    direction: str
    queries: int
    gallery: int  # images per trial
    valid_queries: int
    rank1: float
    rank5: float
    rank10: float
    rank20: float
    map: float
    minp: float
    rank1_deviation: float
    map_deviation: float
    flip: bool
    checkpoint: str  # SHA-256 of the weights


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
) -> ReidResult:
    """Embeds infrared `query` and visible `gallery` samples, ranks by cosine distance and averages the trials.

    `gallery` is what the protocol draws from. `flip` averages the embeddings of each image and its mirror image.
    Raises `InputError` for an empty side, a synthetic image, a wrong modality, or a gallery without the queries' people.
    """
    check_sides(query, gallery)
    trials = trial_galleries(gallery, protocol, permutations)
    model, config, record = load_model(checkpoint, device)
    size = (config.model.height, config.model.width)
    bars = ("query images", "gallery images") if progress else (None, None)
    sets = load_images(query, *size, progress=bars[0]), load_images(gallery, *size, progress=bars[1])
    return score(
        model, sets[0], sets[1], trials, protocol, checkpoint=record["sha256"], dataset=dataset, flip=flip, batch=batch
    )


def check_sides(query: Sequence[Sample], gallery: Sequence[Sample]) -> None:
    """Refuses what would make a number meaningless: empty sides, synthetic images, the wrong modality."""
    for name, samples, modality in (("query", query, "ir"), ("gallery", gallery, "rgb")):
        if not samples:
            raise InputError(f"the {name} is empty; give it images of the test identities")
        made = next((s for s in samples if s.source != "real"), None)
        if made:
            raise InputError(f"the {name} holds a synthetic image ({made.path}); evaluate on real ones only")
        wrong = next((s for s in samples if s.modality != modality), None)
        if wrong:
            raise InputError(f"the {name} holds a {wrong.modality} image ({wrong.path}); queries are infrared (ir), "
                             "the gallery is visible (rgb)")  # fmt: skip


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
) -> ReidResult:
    """`evaluate_reid` for a model and images that are in memory already; `trials` are rows of `gallery`."""
    features = embed(model, query, flip, batch), embed(model, gallery, flip, batch)
    distances = 1 - features[0] @ features[1].T
    ids = [np.array([s.pid for s in side.samples]) for side in (query, gallery)]
    cams = [np.array([camera_number(s.camera) for s in side.samples]) for side in (query, gallery)]
    metrics = []
    for rows in trials:
        r = np.asarray(rows)
        metrics.append(evaluate(distances[:, r], ids[0], ids[1][r], cams[0], cams[1][r], protocol=protocol.rule))
    return ReidResult(
        dataset=dataset,
        protocol=protocol.facts(),
        rule=protocol.rule,
        direction="infrared to visible",
        queries=len(query),
        gallery=len(trials[0]),
        checkpoint=checkpoint,
        flip=flip,
        **_averages(metrics),
    )


def _averages(metrics: Sequence[RankMetrics]) -> dict[str, Any]:
    cmc = 100 * np.array([m.cmc for m in metrics])  # [trials, ranks]
    maps = 100 * np.array([m.map for m in metrics])
    ranks = {f"rank{r}": float(cmc[:, r - 1].mean()) for r in (1, 5, 10, 20)}
    return {
        **ranks,
        "map": float(maps.mean()),
        "minp": float(100 * np.mean([m.minp for m in metrics])),
        "rank1_deviation": float(cmc[:, 0].std()),
        "map_deviation": float(maps.std()),
        "valid_queries": min(m.valid_queries for m in metrics),
    }


@torch.inference_mode()
def embed(
    model: ReidModel, images: ImageSet, flip: bool = True, batch: int = 128, progress: str | None = None
) -> NDArray[np.float32]:
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
