"""Features of images by a ReID checkpoint that was trained on real images only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dive_fast.reid.data.augment import LUMA
from dive_fast.reid.data.dataset import ImageSet, image_chunks
from dive_fast.reid.evaluation.evaluate import CHUNK, embed
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.types import InputError, Sample

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """Unit rows, float32 [N, D]: `identity` by each image's own stem, `tone` of its luma by the visible stem.

    `tone` sees no colour and uses one stem for all images: there the modalities differ by brightness alone, not by
    infrared being grey nor by the stem.
    """

    identity: F32
    tone: F32

    def __len__(self) -> int:
        return len(self.identity)


@dataclass(frozen=True)
class ReidExtractor:
    """An opened checkpoint; `metadata` identifies it in scores.json."""

    model: ReidModel
    height: int
    width: int
    metadata: dict[str, Any]
    batch: int = 128

    @property
    def dims(self) -> int:
        return int(self.model.neck.num_features)

    def features(self, samples: Sequence[Sample], tone: bool = True, progress: str | None = None) -> Features:
        """Features of every sample, in order, one chunk of images in memory at a time; without `tone` those have width 0."""
        parts = []
        for images in image_chunks(samples, self.height, self.width, CHUNK, progress):
            identity = embed(self.model, images, batch=self.batch)
            parts.append((identity, self._tone(images) if tone else identity[:, :0]))
        return Features(*map(np.concatenate, zip(*parts, strict=True)))

    def _tone(self, images: ImageSet) -> F32:
        luma = torch.einsum("bchw,c->bhw", images.images.float(), LUMA)[:, None].expand(-1, 3, -1, -1)
        as_visible = replace(images, images=luma, infrared=torch.zeros_like(images.infrared))
        return embed(self.model, as_visible, batch=self.batch)


def open_extractor(checkpoint: Path | str, device: str = "cpu", batch: int = 128) -> ReidExtractor:
    """Opens `checkpoint`; one that was trained on generated images, or does not say, raises `InputError`.

    A model trained on generated images finds in them what it learned from them: it cannot score them.
    """
    model, config, record = load_model(checkpoint, device)
    synthetic = record.get("synthetic")
    if type(synthetic) is not int or synthetic < 0:
        raise InputError(f"{checkpoint}: reid.json does not say whether it saw synthetic images; train it again")
    if synthetic:
        raise InputError(f"{checkpoint} was trained on {synthetic:,} synthetic images; give one of real images only")
    metadata = {
        "sha256": record["sha256"],
        "data": record.get("data"),
        "images": record.get("images"),
        "identities": len(record["pids"]),
        "synthetic": 0,
    }
    return ReidExtractor(model, config.model.height, config.model.width, metadata, batch)
