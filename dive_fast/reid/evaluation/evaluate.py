"""Evaluation of a trained model: embeddings of both sides, scored under a protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dive_fast.data.names import abbreviate
from dive_fast.reid.data.augment import normalise
from dive_fast.reid.data.dataset import ImageSet, image_chunks
from dive_fast.reid.evaluation.protocols import Permutations, Protocol
from dive_fast.reid.evaluation.rerank import RerankConfig
from dive_fast.reid.evaluation.results import ReidResult
from dive_fast.reid.evaluation.task import RetrievalTask
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.types import DiveError, InputError, Sample

F32 = NDArray[np.float32]
CHUNK = 512  # images decoded at once: 7 MB at 96x48 pixels, 64 MB at 288x144


@dataclass(frozen=True)
class Extracted:
    """Unit embeddings float32 [N, D] of both sides, and the SHA-256 of the weights that made them."""

    query: F32
    gallery: F32
    checkpoint: str


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

    Both sides hold all images that the protocol draws from. `flip` averages the embeddings of an image and its mirror image.
    Raises `InputError` for sides that `check_sides` refuses, a gallery without the queries' identities, and a checkpoint
    trained on test identities, unless the caller declares those as `other_people`.
    """
    task = RetrievalTask.from_samples(query, gallery, protocol, permutations, dataset)
    features = extract(
        checkpoint, query, gallery, flip=flip, batch=batch, device=device, progress=progress, other_people=other_people
    )
    scores = task.score_features(features.query, features.gallery, rerank)
    return task.result(scores, features.checkpoint, flip=flip, rerank=rerank, other_people=other_people)


def check_unseen(record: Mapping[str, Any], query: Sequence[Sample], gallery: Sequence[Sample]) -> None:
    """Raises `InputError` when a side holds identities that a checkpoint was trained or its best weights chosen on.

    RegDB's model of another trial is such a checkpoint. `record` is its `reid.json`.
    """
    seen = {*record["pids"], *record.get("validation", {}).get("people", ())}
    known = sorted(seen & {s.pid for s in [*query, *gallery]})
    if known:
        raise InputError(
            f"the checkpoint was trained or chosen on {len(known):,} identities of the test set ({abbreviate(known)}); give "
            "the one of this split or trial, or --other-people if they only share names"
        )


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
    """Returns the features of both sides by a checkpoint; see `evaluate_reid`."""
    model, config, record = load_model(checkpoint, device)
    if not other_people:
        check_unseen(record, query, gallery)
    size = (config.model.height, config.model.width)
    sides = [
        embed_files(model, samples, size, flip=flip, batch=batch, progress=f"{name} images" if progress else None)
        for name, samples in (("query", query), ("gallery", gallery))
    ]
    return Extracted(sides[0], sides[1], record["sha256"])


def embed_files(
    model: ReidModel,
    samples: Sequence[Sample],
    size: tuple[int, int],
    *,
    flip: bool = True,
    batch: int = 128,
    progress: str | None = None,
) -> F32:
    """Returns unit embeddings float32 [N, D] of images of `size` (height, width), decoding a chunk of them at a time."""
    chunks = image_chunks(samples, *size, batch * max(1, CHUNK // batch), progress)
    return np.concatenate([embed(model, images, flip, batch) for images in chunks])


@torch.inference_mode()
def embed(model: ReidModel, images: ImageSet, flip: bool = True, batch: int = 128) -> F32:
    """Returns unit embeddings float32 [N, D] of an image set, in its order.

    Raises `DiveError` for a model whose features have no direction: weights of 1e30 give infinity, and that zero.
    """
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        pixels, infrared = normalise(images.images[rows].to(device)), images.infrared[rows].to(device)
        features = model.embed(pixels, infrared)
        if flip:
            features = F.normalize(features + model.embed(pixels.flip(3), infrared))
        if bool((features.norm(dim=1) < 0.5).any()):  # what scores features refuses NaN
            raise DiveError("the ReID model gives features of zero: its weights are damaged; train it again")
        parts.append(features.cpu().numpy())
    return np.concatenate(parts)
