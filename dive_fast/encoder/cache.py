"""Features of photos, kept beside a training so that a rerun reads no photo twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dive_fast.distributed import first_rank_first
from dive_fast.encoder.features import FeatureNet
from dive_fast.io import canonical_json, sha256_bytes
from dive_fast.models.files import kept_tensors
from dive_fast.progress import ProgressBar
from dive_fast.types import Sample

_BLOCK = 2048  # photos of a file


def cached_features(source: FeatureNet, samples: Sequence[Sample], work: Path | None, progress: bool) -> Tensor:
    """Returns features float16 [N, F] of photos; with `work`, from files there, made by the first rank where missing."""
    blocks = [samples[first : first + _BLOCK] for first in range(0, len(samples), _BLOCK)]
    parts = []
    with (
        first_rank_first(),
        ProgressBar(total=len(samples), desc="features", unit="photo", disable=not progress) as bar,
    ):
        for block in blocks:
            parts.append(_block(source, block, work))
            bar.update(len(block))
    return torch.cat(parts)


def _block(source: FeatureNet, samples: Sequence[Sample], work: Path | None) -> Tensor:
    if work is None:
        return source.features(samples)
    path = kept_file(work, "features", source.fingerprint, samples)
    return kept_tensors(path, lambda: {"features": source.features(samples)})["features"].half()


def kept_file(work: Path, kind: str, network: str, samples: Sequence[Sample]) -> Path:
    """Returns the file in `work` of what a network made of photos; a photo that was replaced has another."""
    photos = [[sample.pid, sample.camera, sample.path.name, *version(sample.path)] for sample in samples]
    return work / f"{kind}-{sha256_bytes(canonical_json([network, photos]).encode())[:16]}.safetensors"


def version(photo: Path) -> list[int]:
    """Size and time of change of a file, nothing of a missing one, which its reader reports."""
    if not photo.exists():
        return []
    found = photo.stat()
    return [found.st_size, found.st_mtime_ns]
