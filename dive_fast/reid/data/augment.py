"""Random changes of whole batches: drawn first, so processes can share a batch, then applied."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dive_fast.reid.data.config import AugmentConfig

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)  # ImageNet's, which pretrained backbones expect
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
LUMA = torch.tensor([0.299, 0.587, 0.114])
CHANNEL_FILL = torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1)  # CAJ's, after normalisation


@dataclass(frozen=True)
class Draws:
    """The changes of each image of a batch, on the CPU.

    `mirrored`, `exchanged`, `erased` bool [B]; `shift` int64 [B, 2], rows and columns; `weights` float32 [B, 3] of the
    channels where exchanged; `gain` float32 [B]; `box` float32 [B, 4] in pixels: top, left, height, width.
    """

    mirrored: Tensor
    shift: Tensor
    exchanged: Tensor
    weights: Tensor
    gain: Tensor
    box: Tensor
    erased: Tensor

    def take(self, rows: Tensor) -> Draws:
        """Returns the draws of some images of the batch, `rows` int64 [B']."""
        return Draws(*(getattr(self, f.name)[rows] for f in fields(self)))


def draw(
    count: int, height: int, width: int, config: AugmentConfig, generator: torch.Generator, exchange_all: bool = False
) -> Draws:
    """Draws the changes of `count` images from a CPU generator in a fixed order: equal generators give equal batches.

    With `exchange_all` every image keeps one channel in all three: CAJ's second view of the visible images.
    """
    mirrored = torch.rand(count, generator=generator) < config.flip
    shift = torch.randint(-config.crop, config.crop + 1, (2, count), generator=generator)
    exchanged = torch.rand(count, generator=generator) < (1.0 if exchange_all else config.exchange)
    kinds = torch.cat([torch.eye(3), LUMA[None]])
    weights = kinds[torch.randint(0, 3 if exchange_all else 4, (count,), generator=generator)]
    gain = 1 + config.brightness * (2 * torch.rand(count, generator=generator) - 1)
    area, aspect, top, left = torch.rand(4, count, generator=generator)
    area = (0.02 + (config.erase_most - 0.02) * area) * height * width
    aspect = torch.exp((2 * aspect - 1) * 1.2)  # 0.3 to 3.3
    box_height = (area * aspect).sqrt().clamp(max=height)
    box_width = (area / aspect).sqrt().clamp(max=width)
    box = torch.stack([top * (height - box_height), left * (width - box_width), box_height, box_width], 1)
    erased = torch.rand(count, generator=generator) < config.erase
    return Draws(mirrored, shift.T, exchanged, weights, gain, box, erased)


def moved(images: Tensor, rows: Tensor, draws: Draws, fill: Literal["edge", "black"]) -> Tensor:
    """Mirrors and shifts the `rows` (int64 [B]) of uint8 [N, 3, H, W] as drawn: uint8 [B, 3, H, W], on the CPU.

    It copies slices with numpy, one image after the other. This is cheaper than a gather by pixel, and uses no thread of
    torch, so it can run beside a training step.
    """
    height, width = images.shape[2:]
    out = np.empty((len(rows), 3, height, width), np.uint8)
    source, edge = images.numpy(), fill == "edge"
    shifts, mirrored = draws.shift.tolist(), draws.mirrored.tolist()
    for target, row, (down, right), mirror in zip(out, rows.tolist(), shifts, mirrored, strict=True):
        image = source[row, :, :, ::-1] if mirror else source[row]
        y, x = slice(max(0, -down), height - max(0, down)), slice(max(0, -right), width - max(0, right))
        if y.start >= y.stop or x.start >= x.stop:  # the shift exceeds the image: only in small ones
            image = np.pad(image, ((0, 0), (abs(down),) * 2, (abs(right),) * 2), "edge" if edge else "constant")
            y0, x0 = down + abs(down), right + abs(right)
            target[:] = image[:, y0 : y0 + height, x0 : x0 + width]
            continue
        target[:, y, x] = image[:, y.start + down : y.stop + down, x.start + right : x.stop + right]
        target[:, y, : x.start] = target[:, y, x.start : x.start + 1] if edge else 0
        target[:, y, x.stop :] = target[:, y, x.stop - 1 : x.stop] if edge else 0
        target[:, : y.start] = target[:, y.start : y.start + 1] if edge else 0
        target[:, y.stop :] = target[:, y.stop - 1 : y.stop] if edge else 0
    return torch.from_numpy(out)


def coloured(images: Tensor, infrared: Tensor, draws: Draws, config: AugmentConfig) -> Tensor:
    """Exchanges channels, changes brightness, normalises and erases boxes: uint8 [B, 3, H, W] and bool [B] to float32.

    The result is on the device of `images`.
    """
    device = images.device
    pixels = images.float()
    exchanged = (draws.exchanged & ~infrared.cpu()).nonzero()[:, 0].to(device)
    if len(exchanged):
        weights = draws.weights.to(device)[exchanged]
        pixels[exchanged] = torch.einsum("bchw,bc->bhw", pixels[exchanged], weights)[:, None]
    if config.brightness:
        pixels = pixels.mul_(draws.gain.to(device).view(-1, 1, 1, 1)).clamp_(max=255)
    torch.addcmul(*_normaliser(pixels), out=pixels)  # in place: a new tensor of this size costs more than the sum
    if config.erase:
        boxes = _boxes(draws.box.to(device), *images.shape[2:]) & draws.erased.to(device).view(-1, 1, 1, 1)
        if config.erase_fill == "mean":
            pixels.masked_fill_(boxes, 0.0)
        else:
            pixels = torch.where(boxes, CHANNEL_FILL.to(device), pixels)
    return pixels


def normalise(images: Tensor) -> Tensor:
    """Maps pixels in 0..255, [B, 3, H, W], to float32 of about zero mean and unit standard deviation."""
    return torch.addcmul(*_normaliser(images.float()))


def _normaliser(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `addcmul`."""
    return (-MEAN / STD).to(pixels.device), pixels, (1 / (255 * STD)).to(pixels.device)


def _boxes(box: Tensor, height: int, width: int) -> Tensor:
    """A mask of each image's box: float32 [B, 4] to bool [B, 1, H, W]."""
    top, left, box_height, box_width = box.T[:, :, None, None, None]
    y = torch.arange(height, device=box.device).view(1, 1, -1, 1) - top
    x = torch.arange(width, device=box.device).view(1, 1, 1, -1) - left
    return (y >= 0) & (y < box_height) & (x >= 0) & (x < box_width)
