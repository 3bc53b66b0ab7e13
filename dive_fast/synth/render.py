"""From image jobs to images: noise by seed, guidance, the solver and the engine, many prompts in one batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dive_fast.data.images import photo_pixels
from dive_fast.data.names import abbreviate
from dive_fast.sampling import Eps, Schedule, add_noise, dpmpp_2m, guided, initial_noise
from dive_fast.synth.clock import StageClock
from dive_fast.synth.planfile import SynthesisPlan
from dive_fast.types import DiveError, InputError, Modality, PairSpec

if TYPE_CHECKING:
    from dive_fast.engines import Engine
    from dive_fast.models.prompts import PromptKey


KEPT = 256  # encoded prompts, 0.24 MB each in Stable Diffusion 1.5


@dataclass(frozen=True)
class ImageJob:
    """One image to generate: a side of a pair, the file that it becomes, and the photo that it starts from, if any."""

    pair: PairSpec
    side: Modality
    name: str
    shard: int
    photo: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The prompt: identity and camera."""
        return self.pair.pid, self.pair.ir if self.side == "ir" else self.pair.rgb


@dataclass(frozen=True)
class Start:
    """A batch before the engine sees it: its noise [B, C, h, w] and, photo-guided, its photos' pixels uint8 [B, H, W, 3].

    `lost` are the jobs whose photo cannot be read; the others are `jobs`.
    """

    jobs: Sequence[ImageJob]
    noise: Tensor
    photos: Tensor | None
    lost: Sequence[ImageJob] = ()


def prepare(jobs: Sequence[ImageJob], plan: SynthesisPlan, latent_shape: tuple[int, int, int]) -> Start:
    """What a batch starts from, on the CPU: the noise of each pair, and its photo."""
    if plan.strength is None:
        return Start(jobs, initial_noise([job.pair.seed for job in jobs], latent_shape), None)
    found = [(job, _pixels(job.photo, plan)) for job in jobs if job.photo is not None]
    kept = [(job, pixels) for job, pixels in found if pixels is not None]
    noise = initial_noise([job.pair.seed for job, _ in kept], latent_shape)
    photos = np.stack([pixels for _, pixels in kept]) if kept else np.empty((0, plan.height, plan.width, 3), np.uint8)
    lost = [job for job, pixels in found if pixels is None]
    return Start([job for job, _ in kept], noise, torch.from_numpy(photos), lost)


def _pixels(photo: Path, plan: SynthesisPlan) -> NDArray[np.uint8] | None:
    """The photo's pixels; None for one that the writer, which copies it, reports as lost."""
    try:
        return photo_pixels(photo, plan.height, plan.width)
    except InputError:
        return None


class Renderer:
    """Renders batches by one engine for one plan. An image depends on its job alone; its batch changes rounding at most.

    Raises `DiveError` naming the pair of an image that is not finite.
    """

    def __init__(self, engine: Engine, plan: SynthesisPlan, clock: StageClock) -> None:
        self._engine, self._plan, self._clock = engine, plan, clock
        self._schedule = Schedule.from_config(engine.scheduler_config, plan.sampling.steps)
        self._index: dict[PromptKey, int] = {}
        self._encoded: OrderedDict[PromptKey, Tensor] = OrderedDict()  # [L, D] each, the last used at the end

    def use_prompts(self, keys: Iterable[tuple[str, str]]) -> None:
        """Conditions the engine on these prompts for the next batches; encodes only those not encoded lately."""
        wanted: list[PromptKey] = [None, *dict.fromkeys(keys)]
        if self._index.keys() >= set(wanted):
            return
        with self._clock("encode"):
            new = [key for key in wanted if key not in self._encoded]
            if new:
                embeddings, index = self._engine.prompts.encode(self._engine.encode_text, new)
                self._encoded.update(zip(new, embeddings[index], strict=True))
            for key in wanted:
                self._encoded.move_to_end(key)
            self._conditioning = self._engine.condition(torch.stack([self._encoded[key] for key in wanted]))
            while len(self._encoded) > max(KEPT, len(wanted)):
                self._encoded.popitem(last=False)
        self._index = {key: number for number, key in enumerate(wanted)}

    def images(self, start: Start) -> NDArray[np.uint8]:
        """uint8 [B, H, W, 3] of a batch whose prompts are in use."""
        engine, plan = self._engine, self._plan
        latents = start.noise
        if start.photos is not None:
            with self._clock("encode"):
                latents = add_noise(engine.encode(start.photos), latents, self._schedule, plan.start)
        index = torch.tensor([self._index[job.key] for job in start.jobs])

        def eps_rows(latents: Tensor, timestep: int, prompt_index: Tensor) -> Tensor:
            return engine.eps(latents, timestep, self._conditioning, prompt_index)

        guided_at = plan.sampling.guided_timesteps(self._schedule)
        eps = guided(eps_rows, index, self._index[None], plan.sampling.guidance, guided_at)
        with self._clock("denoise"):
            latents = _solve(eps, latents.to(engine.device), self._schedule, plan.start, start.jobs)
        with self._clock("decode"):
            return engine.decode(latents).cpu().numpy()


def _solve(eps: Eps, latents: Tensor, schedule: Schedule, start: int, batch: Sequence[ImageJob]) -> Tensor:
    """Runs `dpmpp_2m`; an error about rows that are not finite names their pairs."""
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
        raise DiveError(f"pair {abbreviate(bad)}: {error}") from error
