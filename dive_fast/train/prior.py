"""Prior preservation (DreamBooth, arXiv 2208.12242): class photos that keep the LoRA from forgetting other people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dive_fast.distributed import first_rank_first
from dive_fast.io import sha256_bytes
from dive_fast.models.files import kept_tensors
from dive_fast.train.photos import encode_photos, latent_shape
from dive_fast.types import InputError, Sample

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle
    from dive_fast.train.config import Prior
    from dive_fast.train.samples import ImageSampler

_NAME = "latents"
_BATCH = 16  # class photos that the base generates at once


@dataclass(frozen=True)
class ClassPhotos:
    """Scaled latents float32 [M, C, h, w] of photos of the class, and their caption's token ids int64 [1, L]."""

    latents: torch.Tensor
    ids: torch.Tensor

    def draw(self, step: int, batch: int, seed: int) -> tuple[torch.Tensor, torch.Generator]:
        """Returns a step's latents [batch, C, h, w] and a generator for its noise, independent of the photos' draws."""
        import torch

        rng = np.random.default_rng([seed, step, 1])
        rows = torch.from_numpy(rng.integers(0, len(self.latents), batch))
        return self.latents[rows], torch.Generator().manual_seed(int(rng.integers(2**63)))


def prompt_ids(bundle: ModelBundle, text: str) -> torch.Tensor:
    """Returns token ids int64 [1, L]; a text longer than the model reads raises `InputError`."""
    import torch

    length = bundle.tokenizer.model_max_length
    ids = bundle.tokenizer(text, padding="max_length", truncation=False)["input_ids"]
    if len(ids) > length:
        raise InputError(f"class prompt {text!r} is longer than the {length} tokens that the model reads; shorten it")
    return torch.tensor([ids])


def read_class_photos(bundle: ModelBundle, files: Sequence[Path], prompt: str, progress: bool) -> ClassPhotos:
    """Encodes the given photos, each and its mirror image; a damaged one raises `InputError` that names it."""
    latents = encode_photos(bundle, [Sample(file, "class", "class") for file in files], progress=progress).latents
    return ClassPhotos(latents.flatten(0, 1), prompt_ids(bundle, prompt))


def generate_class_photos(sampler: ImageSampler, prior: Prior, seed: int, work: Path, progress: bool) -> ClassPhotos:
    """Samples latents of the class prompt from the untrained base, once, and stores them in `work` for a resumed run."""
    import torch

    from dive_fast.progress import ProgressBar

    ids, count = prompt_ids(sampler.bundle, prior.prior_prompt), prior.prior_count
    name = class_photos_id(sampler.bundle, prior, sampler.steps, sampler.guidance, seed)[:16]
    path = work / f"class-{name}.safetensors"

    def make() -> dict[str, torch.Tensor]:
        text, parts = sampler.text(torch.cat([prompt_ids(sampler.bundle, ""), ids])), []
        for first in ProgressBar(range(0, count, _BATCH), desc="class photos", unit="batch", disable=not progress):
            seeds = [seed * 1_000_003 + number for number in range(first, min(first + _BATCH, count))]
            parts.append(sampler.latents(text, torch.ones(len(seeds), dtype=torch.int64), seeds))
        return {_NAME: torch.cat(parts)}

    with first_rank_first():
        latents = kept_tensors(path, make).get(_NAME)
    if latents is None or tuple(latents.shape) != (count, *latent_shape(sampler.bundle)):
        raise InputError(f"{path} does not hold {count:,} class photos of this model; delete it and rerun")
    return ClassPhotos(latents, ids)


def class_photos_id(bundle: ModelBundle, prior: Prior, steps: int, guidance: float, seed: int) -> str:
    """Returns the id of the class photos that a base generates."""
    settings = (bundle.fingerprint, prior.prior_prompt, prior.prior_count, steps, guidance, seed)
    return sha256_bytes(repr(settings).encode())
