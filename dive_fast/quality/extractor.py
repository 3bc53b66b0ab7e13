"""Features that set-level distances compare: a ReID model's, or those of any TorchScript file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dive_fast.io import brief, sha256_file
from dive_fast.quality.reid_extractor import F32, ReidExtractor
from dive_fast.reid.data.dataset import image_chunks
from dive_fast.reid.evaluation.evaluate import CHUNK
from dive_fast.types import DiveError, InputError, Sample


class Extractor(Protocol):
    """Samples to float32 [N, D]; `metadata` identifies the features."""

    @property
    def metadata(self) -> dict[str, Any]: ...

    def features(self, samples: Sequence[Sample], progress: str | None = None) -> F32: ...


@dataclass(frozen=True)
class ReidFeatures:
    """A ReID model's unit embeddings scaled to length sqrt(D): entries of about 1, as the kernel of KID expects."""

    extractor: ReidExtractor

    @property
    def metadata(self) -> dict[str, Any]:
        return {"kind": "reid", "sha256": self.extractor.metadata["sha256"], "dims": self.extractor.dims}

    def features(self, samples: Sequence[Sample], progress: str | None = None) -> F32:
        return self.extractor.features(samples, False, progress).identity * np.float32(np.sqrt(self.extractor.dims))


@dataclass(frozen=True)
class ScriptFeatures:
    """A TorchScript file: RGB images float32 [B, 3, H, W] in 0..1 to [B, D]; the file normalises them itself."""

    module: torch.jit.ScriptModule
    height: int
    width: int
    device: str
    batch: int
    metadata: dict[str, Any]

    def features(self, samples: Sequence[Sample], progress: str | None = None) -> F32:
        chunks = image_chunks(samples, self.height, self.width, CHUNK, progress)
        parts = (pixels for images in chunks for pixels in images.images.split(self.batch))
        return np.concatenate([self._run(pixels.to(self.device).float() / 255) for pixels in parts])

    @torch.inference_mode()
    def _run(self, pixels: torch.Tensor) -> F32:
        try:
            found = self.module(pixels)
        except RuntimeError as error:  # torch's own, whatever the script does
            raise DiveError(f"extractor {self.metadata['file']} fails on images: {brief(error)}") from error
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != len(pixels):
            raise DiveError(f"extractor {self.metadata['file']} must give [B, D] for [B, 3, H, W] images")
        if not found.isfinite().all():
            raise DiveError(f"extractor {self.metadata['file']} gives numbers that are not finite")
        return found.float().cpu().numpy()


def open_script(path: Path, height: int, width: int, device: str = "cpu", batch: int = 32) -> ScriptFeatures:
    """Opens a TorchScript file (torch.jit.save). It holds code that will run: open only files that you trust."""
    if not path.is_file():
        raise InputError(f"extractor {path} does not exist")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"extractor {path} is no TorchScript file (torch.jit.save): {brief(error)}") from error
    metadata = {"kind": "torchscript", "file": path.name, "sha256": sha256_file(path), "size": f"{height}x{width}"}
    return ScriptFeatures(module, height, width, device, batch, metadata)
