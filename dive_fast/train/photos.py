"""Training photos as latents, and the batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from dive_fast.data.images import photo_pixels
from dive_fast.types import InputError, Sample

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle


@dataclass(frozen=True)
class LatentPhotos:
    """Scaled latents float32 [N, 2, C, h, w] of photos (each and its mirror image), and their samples.

    `teaching` is the result of the function of that name. Latents that are not finite raise `InputError`.
    """

    latents: torch.Tensor
    samples: tuple[Sample, ...]
    teaching: np.ndarray

    def __post_init__(self) -> None:
        bad = (~self.latents.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise InputError(
                f"the VAE makes NaN or infinity of {len(bad)} of {len(self.samples)} photos, first"
                f" {self.samples[bad[0]].path}; use another base model"
            )

    def only(self, kept: np.ndarray) -> LatentPhotos:
        """Returns the photos where `kept`, bool [N], is true."""
        import torch

        return LatentPhotos(
            self.latents[torch.from_numpy(kept)], tuple(compress(self.samples, kept)), self.teaching[kept]
        )


Photos = Sequence[Sample] | LatentPhotos
"""Training photos, as files or encoded."""


def samples_of(photos: Photos) -> Sequence[Sample]:
    return photos.samples if isinstance(photos, LatentPhotos) else photos


def only(photos: Photos, kept: np.ndarray) -> Photos:
    """Returns the photos where `kept`, bool [N], is true."""
    if isinstance(photos, LatentPhotos):
        return photos.only(kept)
    return list(compress(photos, kept))


def teaching(samples: Sequence[Sample]) -> np.ndarray:
    """Returns the photos that train identities, bool [N]: RGB photos, and all photos of an identity without any."""
    visible = {s.pid for s in samples if s.modality == "rgb"}
    return np.array([s.modality == "rgb" or s.pid not in visible for s in samples], dtype=bool)


def latent_shape(bundle: ModelBundle) -> tuple[int, int, int]:
    """Shape (C, h, w) of an image's latents; a single `sample_size`, as in Stable Diffusion 1.5, is a height: 64 x 32."""
    size = bundle.unet.config.sample_size
    height, width = (size, size // 2) if isinstance(size, int) else size
    return int(bundle.vae.config.latent_channels), height, width


def image_size(bundle: ModelBundle) -> tuple[int, int]:
    """Height and width in pixels of the model's images; for Stable Diffusion 1.5 DiVE's 512 x 256."""
    factor = 2 ** (len(bundle.vae.config.block_out_channels) - 1)
    _, height, width = latent_shape(bundle)
    return height * factor, width * factor


def to_signal(pixels: np.ndarray) -> torch.Tensor:
    """Pixels uint8 [B, H, W, 3] as contiguous float32 [B, 3, H, W] in -1..1."""
    import torch

    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def to_pixels(signal: torch.Tensor) -> np.ndarray:
    """Images [B, 3, H, W] in -1..1 as uint8 [B, H, W, 3] on the CPU."""
    import torch

    return signal.float().add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


@contextmanager
def on_device(network: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Moves `network` to `device` for the block, then back to the CPU to free a GPU's memory."""
    network.to(device)
    try:
        yield
    finally:
        network.cpu()


def encode_photos(
    bundle: ModelBundle, samples: Sequence[Sample], batch: int = 32, progress: bool = True
) -> LatentPhotos:
    """Encodes every photo, resized to the model's size, and its mirror image, on the VAE's device.

    A missing or truncated photo raises `InputError` that names it.
    """
    import torch

    from dive_fast.progress import ProgressBar

    height, width = image_size(bundle)
    scale = float(bundle.vae.config.scaling_factor)
    parts = []
    with torch.inference_mode():
        for i in ProgressBar(range(0, len(samples), batch), desc="encode photos", unit="batch", disable=not progress):
            block = [photo_pixels(s.path, height, width) for s in samples[i : i + batch]]
            x = to_signal(np.stack(block))
            both = torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)
            mean = bundle.vae.encode(both.to(bundle.vae.device)).latent_dist.mean * scale
            parts.append(mean.cpu().unflatten(0, (-1, 2)))
    return LatentPhotos(torch.cat(parts).clone(), tuple(samples), teaching(samples))


class BalancedSampler:
    """Draws a step's photos: a fixed fraction of infrared (None: that of the photos), identities evenly in each modality.

    Batches depend on (seed, step) only, so a resumed run sees those of an uninterrupted one. `counts` are a batch's photos
    per modality.
    """

    def __init__(self, samples: Sequence[Sample], batch: int, ir_fraction: float | None, seed: int) -> None:
        self.batch, self.seed = batch, seed
        self._groups: dict[str, dict[str, list[int]]] = {"rgb": {}, "ir": {}}
        for i, sample in enumerate(samples):
            self._groups[sample.modality].setdefault(sample.pid, []).append(i)
        if ir_fraction is None:
            ir_fraction = sum(map(len, self._groups["ir"].values())) / len(samples)
        infrared = round(batch * ir_fraction) if self._groups["ir"] else 0
        if not self._groups["rgb"]:
            infrared = batch
        self.counts = {"ir": infrared, "rgb": batch - infrared}

    def __call__(self, step: int) -> tuple[np.ndarray, np.random.Generator]:
        """Returns photo indices int64 [batch], and the generator for all other draws of the step."""
        rng = np.random.default_rng([self.seed, step])
        picked: list[int] = []
        for kind, count in self.counts.items():
            groups = list(self._groups[kind].values())
            if count:
                chosen = [groups[i] for i in rng.choice(len(groups), count, replace=count > len(groups))]
                picked += [rows[int(rng.integers(len(rows)))] for rows in chosen]
        return np.array(picked, dtype=np.int64), rng

    def expected(self, steps: int) -> dict[str, float]:
        """Returns the expected number of photos drawn of each identity in `steps` steps."""
        seen: dict[str, float] = {}
        for kind, identities in self._groups.items():
            for pid in identities:
                seen[pid] = seen.get(pid, 0.0) + steps * self.counts[kind] / len(identities)
        return seen
