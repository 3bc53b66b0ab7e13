"""From image jobs to images: noise by seed, guidance, the solver and the engine, many prompts in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dive_fast.data.images import photo_pixels
from dive_fast.data.names import some
from dive_fast.sampling import Eps, Schedule, add_noise, dpmpp_2m, guided, initial_noise
from dive_fast.synth.clock import StageClock
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.types import DiveError, Modality, PairSpec

if TYPE_CHECKING:
    from dive_fast.engines import Engine


@dataclass(frozen=True)
class ImageJob:
    """One image to generate: a side of a pair, the file that it becomes, and the photo that it starts from, if any."""

    pair: PairSpec
    side: Modality
    name: str
    photo: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The prompt: identity and camera."""
        return self.pair.pid, self.pair.ir if self.side == "ir" else self.pair.rgb


def images_per_batch(rows: int, guidance: float) -> int:
    """How many images fit in `rows` UNet rows: guidance runs every image with its prompt and without."""
    return rows if guidance == 1.0 else rows // 2


def generate(
    engine: Engine, jobs: Sequence[ImageJob], plan: SynthesisPlan, rows: int, clock: StageClock
) -> Iterator[tuple[Sequence[ImageJob], NDArray[np.uint8]]]:
    """Yields the jobs in order, a batch at a time, with their images, uint8 [B, H, W, 3].

    The jobs' distinct prompts are encoded once, for all batches. An image depends on its job alone: which images share
    its batch changes rounding at most. Raises `DiveError` naming the pair of an image that is not finite or is blank.
    """
    with clock("encode"):
        keys = [job.key for job in jobs]
        embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
        conditioning = engine.condition(embeddings)
    schedule = Schedule.from_config(engine.scheduler_config, plan.steps)
    size = images_per_batch(rows, plan.guidance)

    def eps_rows(latents: Tensor, timestep: int, prompt_index: Tensor) -> Tensor:
        return engine.eps(latents, timestep, conditioning, prompt_index)

    for first in range(0, len(jobs), size):
        batch = jobs[first : first + size]
        latents = _start(engine, batch, plan, schedule, clock)
        eps = guided(eps_rows, index[1 + first : 1 + first + size], int(index[0]), plan.guidance)
        with clock("denoise"):
            latents = _solve(eps, latents, schedule, plan.start, batch)
        with clock("decode"):
            images = engine.decode(latents).cpu().numpy()
        _check_images(batch, images)
        yield batch, images


def _start(
    engine: Engine, batch: Sequence[ImageJob], plan: SynthesisPlan, schedule: Schedule, clock: StageClock
) -> Tensor:
    """Where the solver starts: each pair's own noise, or its photo's latents with that noise at the plan's start."""
    noise = initial_noise([job.pair.seed for job in batch], engine.latent_shape)
    if plan.strength is None:
        return noise.to(engine.device)
    with clock("encode"):
        photos = np.stack([photo_pixels(job.photo, plan.height, plan.width) for job in batch if job.photo is not None])
        latents = engine.encode(torch.from_numpy(photos))
    return add_noise(latents, noise, schedule, plan.start).to(engine.device)


def _solve(eps: Eps, latents: Tensor, schedule: Schedule, start: int, batch: Sequence[ImageJob]) -> Tensor:
    """`dpmpp_2m`, whose error about rows that are not finite is told as one about pairs."""
    latest = latents

    def on_step(_: int, after: Tensor) -> None:
        nonlocal latest
        latest = after

    try:
        return dpmpp_2m(eps, latents, schedule, start, on_step)
    except DiveError as error:
        finite = latest.isfinite().flatten(1).all(dim=1).tolist()
        bad = [job.pair.pair_id for job, good in zip(batch, finite, strict=True) if not good]
        if not bad:
            raise
        raise DiveError(f"pair {some(bad)}: {error}") from error


def _check_images(batch: Sequence[ImageJob], images: NDArray[np.uint8]) -> None:
    flat = images.reshape(len(images), -1)
    constant = flat.min(axis=1) == flat.max(axis=1)
    blank = [job.pair.pair_id for job, is_constant in zip(batch, constant, strict=True) if is_constant]
    if blank:
        raise DiveError(
            f"pair {some(blank)}: the engine gave an image of one single value, so nothing of this shard is recorded; "
            "use float32, or check the model"
        )
