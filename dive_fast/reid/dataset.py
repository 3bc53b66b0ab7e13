"""Person images in memory, decoded once, and the augmentation of whole batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from dive_fast.data.images import open_image
from dive_fast.io import canonical_json, sha256_bytes, sha256_file
from dive_fast.types import MODALITIES, InputError, Sample

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)  # ImageNet's, which pretrained backbones expect
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
LUMA = torch.tensor([0.299, 0.587, 0.114])
_DECODERS = 4


@dataclass(frozen=True)
class ImageSet:
    """Decoded images and what is known of them, row by row in the order of `samples`.

    `images` uint8 [N, 3, H, W]; `labels` int64 [N], an index into `pids` (sorted); `infrared` and `synthetic` bool [N].
    """

    samples: tuple[Sample, ...]
    images: Tensor
    labels: Tensor
    infrared: Tensor
    synthetic: Tensor
    pids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.samples)


def load_images(samples: Sequence[Sample], height: int, width: int, *, progress: str | None = None) -> ImageSet:
    """Decodes and resizes `samples` to `height` x `width`; `progress` names a progress bar.

    Raises `InputError` for an empty list, a file that is listed twice, and a file that is missing or broken.
    """
    check_samples(samples, progress or "images")
    images = torch.empty((len(samples), 3, height, width), dtype=torch.uint8)

    def decode(row: int) -> None:
        photo = open_image(samples[row].path)
        if photo.size != (width, height):
            photo = photo.resize((width, height), Image.Resampling.BILINEAR)
        images[row] = torch.from_numpy(np.asarray(photo, dtype=np.uint8).copy()).permute(2, 0, 1)

    with ThreadPoolExecutor(_DECODERS) as pool:
        rows = tqdm(range(len(samples)), desc=progress, unit="image", disable=progress is None, leave=False)
        for _ in pool.map(decode, rows):
            pass
    pids = tuple(sorted({s.pid for s in samples}))
    label = {pid: i for i, pid in enumerate(pids)}
    return ImageSet(
        tuple(samples),
        images,
        torch.tensor([label[s.pid] for s in samples]),
        torch.tensor([s.modality == "ir" for s in samples]),
        torch.tensor([s.source == "synthetic" for s in samples]),
        pids,
    )


def check_samples(samples: Sequence[Sample], what: str) -> None:
    """Raises `InputError` for no samples, unknown modalities and files that are listed twice."""
    if not samples:
        raise InputError(f"{what}: no samples; the list is empty")
    wrong = next((s for s in samples if s.modality not in MODALITIES), None)
    if wrong:
        raise InputError(f"{what}: {wrong.path} has modality {wrong.modality!r}; use one of {MODALITIES}")
    twice = [path for path, count in Counter(s.path for s in samples).items() if count > 1]
    if twice:
        raise InputError(f"{what}: {len(twice)} file(s) are listed more than once, first {min(twice)}")


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of what the images hold and how they are labelled, wherever the files lie."""
    try:
        rows = [[s.pid, s.camera, s.modality, s.source, sha256_file(s.path)] for s in samples]
    except OSError as error:
        raise InputError(f"image {error.filename} cannot be read ({error.strerror}); check the data folder") from error
    return sha256_bytes(canonical_json(rows).encode())


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; 0 turns any of them off.

    `flip` probability of mirroring; `crop` largest shift in pixels, the border repeated (pad and crop); `erase` probability
    of a grey box over 2-30 % of the image (random erasing, arXiv:1708.04896); `exchange` probability that a visible image
    keeps only one channel, or its luma, in all three (channel exchange, CAJ, ICCV 2021); `brightness` largest
    relative change.
    """

    flip: float = 0.5
    crop: int = 6
    erase: float = 0.5
    exchange: float = 0.5
    brightness: float = 0.2

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "exchange", "brightness"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augment {name} must be between 0 and 1, got {getattr(self, name)}")
        if self.crop < 0:
            raise InputError(f"augment crop must be 0 or more pixels, got {self.crop}")


def normalise(images: Tensor) -> Tensor:
    """Pixels in 0..255, [B, 3, H, W], to float32 of about zero mean and unit deviation."""
    scale = 1 / (255 * DEVIATION)
    return torch.addcmul((-MEAN / DEVIATION).to(images.device), images.float(), scale.to(images.device))


def augment(images: Tensor, infrared: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Randomly changed and normalised images: uint8 [B, 3, H, W] and bool [B] to float32 [B, 3, H, W].

    All draws come from `generator` (a CPU one) in a fixed order, so equal generators give equal batches.
    """
    count, device = len(images), images.device

    def chosen(probability: float) -> Tensor:
        return (torch.rand(count, generator=generator) < probability).to(device)

    images = _moved(images, chosen(config.flip), config.crop, generator).float()
    exchanged = (chosen(config.exchange) & ~infrared.to(device)).nonzero()[:, 0]
    weights = torch.cat([torch.eye(3), LUMA[None]])[torch.randint(0, 4, (count,), generator=generator)].to(device)
    images[exchanged] = torch.einsum("bchw,bc->bhw", images[exchanged], weights[exchanged])[:, None]
    gain = 1 + config.brightness * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    images = normalise((images * gain.to(device)).clamp_(max=255))
    boxes = _boxes(count, images.shape[2], images.shape[3], generator).to(device)
    return images.masked_fill_(chosen(config.erase).view(-1, 1, 1, 1) & boxes, 0.0)


def _moved(images: Tensor, mirrored: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image mirrored or not, and shifted by up to `pixels` both ways, its border repeated where it left."""
    count, _, height, width = images.shape
    shift = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator).to(images.device)
    rows = (shift[0] + torch.arange(height, device=images.device)).clamp(0, height - 1)  # [B, H]
    columns = (shift[1] + torch.arange(width, device=images.device)).clamp(0, width - 1)  # [B, W]
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    flat = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)
    return images.flatten(2).gather(2, flat.expand(-1, 3, -1)).view_as(images)


def _boxes(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A box per image, bool [B, 1, H, W]: 2-30 % of the area, aspect 0.3 to 3.3."""
    area, aspect, top, left = torch.rand(4, count, 1, 1, 1, generator=generator)
    area = (0.02 + 0.28 * area) * height * width
    aspect = torch.exp((2 * aspect - 1) * 1.2)
    box_height = (area * aspect).sqrt().clamp(max=height)
    box_width = (area / aspect).sqrt().clamp(max=width)
    y, x = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    y, x = y - top * (height - box_height), x - left * (width - box_width)
    return (y >= 0) & (y < box_height) & (x >= 0) & (x < box_width)
