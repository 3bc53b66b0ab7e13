"""Training photos as latents, and which of them a step sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dive_fast.data.images import photo_pixels
from dive_fast.types import InputError, Sample

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle


@dataclass(frozen=True)
class LatentPhotos:
    """Scaled latents float32 [N, 2, C, h, w] (each photo and its mirror image) with the samples they came from.

    `teaching` as the function of that name says.
    """

    latents: torch.Tensor
    samples: tuple[Sample, ...]
    teaching: np.ndarray

    def only(self, kept: np.ndarray) -> LatentPhotos:
        """The photos for which `kept`, bool [N], says so."""
        import torch

        samples = tuple(sample for sample, keep in zip(self.samples, kept, strict=True) if keep)
        return LatentPhotos(self.latents[torch.from_numpy(kept)], samples, self.teaching[kept])


Photos = Sequence[Sample] | LatentPhotos
"""Training photos as files, or encoded."""


def samples_of(photos: Photos) -> Sequence[Sample]:
    return photos.samples if isinstance(photos, LatentPhotos) else photos


def only(photos: Photos, kept: np.ndarray) -> Photos:
    """The photos for which `kept`, bool [N], says so."""
    if isinstance(photos, LatentPhotos):
        return photos.only(kept)
    return [sample for sample, keep in zip(photos, kept, strict=True) if keep]


def teaching(samples: Sequence[Sample]) -> np.ndarray:
    """Bool [N]: RGB photos, and every photo of a person who has none."""
    visible = {s.pid for s in samples if s.modality == "rgb"}
    return np.array([s.modality == "rgb" or s.pid not in visible for s in samples], dtype=bool)


def latent_size(bundle: ModelBundle) -> tuple[int, int]:
    """Height and width of a photo's latents; for Stable Diffusion 1.5 64 x 32, as one number is a height for us."""
    size = bundle.unet.config.sample_size
    height, width = (size, size // 2) if isinstance(size, int) else size
    return height, width


def image_size(bundle: ModelBundle) -> tuple[int, int]:
    """Height and width in pixels that a model was trained at; for Stable Diffusion 1.5 it is DiVE's 512 x 256."""
    factor = 2 ** (len(bundle.vae.config.block_out_channels) - 1)
    height, width = latent_size(bundle)
    return height * factor, width * factor


@contextmanager
def visiting(network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block, `network` is on `device`; then on the CPU again, where it does not take a GPU's memory."""
    network.to(device)
    try:
        yield
    finally:
        network.cpu()


def encode_photos(
    bundle: ModelBundle, samples: Sequence[Sample], batch: int = 32, progress: bool = True
) -> LatentPhotos:
    """Decodes, resizes to the model's size and encodes every photo and its mirror image, once.

    The VAE computes where it is. A missing or truncated photo raises `InputError` that names it.
    """
    import torch
    from tqdm import tqdm

    if not samples:
        raise InputError("there are no training photos; check the data folder and the filters")
    height, width = image_size(bundle)
    scale = float(bundle.vae.config.scaling_factor)
    parts = []
    with torch.inference_mode():
        for i in tqdm(range(0, len(samples), batch), desc="encode photos", unit="batch", disable=not progress):
            block = [photo_pixels(s.path, height, width) for s in samples[i : i + batch]]
            x = torch.from_numpy(np.stack(block)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()
            both = torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)
            mean = bundle.vae.encode(both.to(bundle.vae.device)).latent_dist.mean * scale
            parts.append(mean.cpu().unflatten(0, (-1, 2)))
    return LatentPhotos(torch.cat(parts).clone(), tuple(samples), teaching(samples))


class BalancedDraw:
    """Which photos a step sees: identities evenly within each modality, infrared at a fixed share.

    Drawn by (seed, step), so a resumed run sees what an undisturbed one would have seen. `counts` are a step's photos of
    each modality.
    """

    def __init__(self, samples: Sequence[Sample], batch: int, ir_share: float, seed: int) -> None:
        self.batch, self.seed = batch, seed
        self._groups: dict[str, dict[str, list[int]]] = {"rgb": {}, "ir": {}}
        for i, sample in enumerate(samples):
            self._groups[sample.modality].setdefault(sample.pid, []).append(i)
        infrared = round(batch * ir_share) if self._groups["ir"] else 0
        if not self._groups["rgb"]:
            infrared = batch
        self.counts = {"ir": infrared, "rgb": batch - infrared}

    def __call__(self, step: int) -> tuple[np.ndarray, np.random.Generator]:
        """Photo indices int64 [batch], and the generator for whatever else the step draws."""
        rng = np.random.default_rng([self.seed, step])
        picked = [i for kind, count in self.counts.items() for i in self._pick(rng, self._groups[kind], count)]
        return np.array(picked, dtype=np.int64), rng

    def expected(self, steps: int) -> dict[str, float]:
        """How many photos of each person `steps` steps draw, on average over seeds."""
        seen = {pid: 0.0 for people in self._groups.values() for pid in people}
        for kind, people in self._groups.items():
            for pid in people:
                seen[pid] += steps * self.counts[kind] / len(people)
        return seen

    @staticmethod
    def _pick(rng: np.random.Generator, groups: dict[str, list[int]], count: int) -> list[int]:
        if not count:
            return []
        pids = list(groups)
        chosen = [pids[i] for i in rng.choice(len(pids), count, replace=count > len(pids))]
        return [groups[pid][int(rng.integers(len(groups[pid])))] for pid in chosen]
