"""Batches of a training by step number; a thread prepares the next one during a step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from dive_fast.reid.data.augment import Draws, coloured, draw, moved
from dive_fast.reid.data.dataset import ImageSet
from dive_fast.reid.data.sampler import PairSampler
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.parallel import my_rows


@dataclass(frozen=True)
class Batch:
    """This rank's images of a batch, moved but not yet coloured: uint8 [B, 3, H, W], `infrared` bool and `labels` int64 [B].

    A second view of the visible images comes last.
    """

    images: Tensor
    infrared: Tensor
    labels: Tensor
    draws: tuple[Draws, ...]  # of the batch, and of the views

    def pixels(self, config: ReidConfig, device: torch.device | str) -> Tensor:
        """Returns the model's input, float32 [B, 3, H, W] on `device`."""
        images, start, parts = self.images.to(device), 0, []
        for draws in self.draws:
            rows = slice(start, start + len(draws.gain))
            parts.append(coloured(images[rows], self.infrared[rows], draws, config.augment))
            start = rows.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def make_batch(images: ImageSet, sampler: PairSampler, step: int, config: ReidConfig) -> Batch:
    """Returns batch number `step`, which depends on that and the config alone; every rank draws for the whole batch."""
    rows = torch.from_numpy(sampler.batch(step))
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    height, width = images.images.shape[2:]
    own = torch.arange(len(rows))[my_rows(len(rows), config.identities)]
    draws = draw(len(rows), height, width, config.augment, generator)
    parts = [(rows[own], draws.take(own))]
    if config.exchange_view:
        visible = (~images.infrared[rows]).nonzero()[:, 0]
        views = draw(len(visible), height, width, config.augment, generator, exchange_all=True)
        mine = torch.isin(visible, own).nonzero()[:, 0]
        parts.append((rows[visible[mine]], views.take(mine)))
    every = torch.cat([part for part, _ in parts])
    pixels = torch.cat([moved(images.images, part, its, config.augment.fill) for part, its in parts])
    return Batch(pixels, images.infrared[every], images.labels[every], tuple(its for _, its in parts))


def batches(images: ImageSet, sampler: PairSampler, steps: range, config: ReidConfig) -> Iterator[Batch]:
    """Yields the batches of `steps`, preparing each while its predecessor is in use.

    The thread only copies bytes and draws few numbers, so it takes no cores from the step.
    """
    with ThreadPoolExecutor(1) as ahead:
        coming = None
        for step in steps:
            batch = make_batch(images, sampler, step, config) if coming is None else coming.result()
            if step + 1 < steps.stop:
                coming = ahead.submit(make_batch, images, sampler, step + 1, config)
            yield batch
