"""The work that is timed: random noise and real prompts in a plan, through the renderer that synthesis itself uses."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.bench.timing import Stages
from dive_fast.engines.base import Conditioning, Engine
from dive_fast.sampling.config import Sampling
from dive_fast.synth.clock import StageClock
from dive_fast.synth.layout import shard_pairs
from dive_fast.synth.plan import make_plan
from dive_fast.synth.planfile import ImageFormat, SynthesisPlan
from dive_fast.synth.render import ImageJob, Renderer, Start, prepare
from dive_fast.synth.store import LocalStore
from dive_fast.synth.writer import DatasetWriter
from dive_fast.types import InputError, Modality

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

IDENTITIES = 16  # prompts of as many identities in a batch, twice as many with both sides
STAGES = ("encode", "bank", "denoise", "decode", "write")


def bench_plan(
    engine: Engine,
    images: int,
    sampling: Sampling,
    identities: int = IDENTITIES,
    image_format: ImageFormat = "png",
    shard_size: int = 64,
) -> SynthesisPlan:
    """A plan with both sides generated: up to `identities` of the engine's, at least `images` images a side.

    Raises `InputError` for an engine that knows nobody, or cameras of one modality only.
    """
    table, profile = engine.prompts.table, engine.spec.profile
    cameras = {kind: [c.name for c in table.cameras if c.modality == kind][:1] for kind in ("ir", "rgb")}
    pids = [identity.pid for identity in table.identities][:identities]
    if not (pids and cameras["ir"] and cameras["rgb"]):
        raise InputError(
            f"bench: the model has {len(pids)} identities and {len(table.cameras)} cameras; it needs an identity, an RGB "
            "and an infrared camera; fuse an adapter into it first (dive-fast fuse)"
        )
    return make_plan(
        mode="synthetic",
        pids=pids,
        cameras=table.cameras,
        ir=cameras["ir"],
        rgb=cameras["rgb"],
        pairs_per_identity=-(-images // len(pids)),
        seed=0,
        height=profile.height,
        width=profile.width,
        model_fingerprint=engine.spec.model_fingerprint,
        shard_size=shard_size,
        sampling=sampling,
        image_format=image_format,
    )


def start_batch(
    plan: SynthesisPlan,
    engine: Engine,
    images: int,
    sides: Sequence[Modality] = ("rgb", "ir"),
    identity: int | None = None,
) -> Start:
    """A batch of `images` images of the plan's pairs, spread over all identities, or of one `identity` (its number)."""
    files = [entry for number in range(plan.shards) for entry in shard_pairs(plan, number)]
    if identity is None:
        files.sort(key=lambda entry: entry[0].index)
    else:
        files = [entry for entry in files if entry[0].pid == plan.identities[identity].pid]
    jobs = [ImageJob(pair, side, names[side], 0) for pair, names in files for side in sides]
    return prepare(jobs[:images], plan, engine.latent_shape)


class _WatchedBank:
    """An engine whose `condition` is timed as a stage of its own."""

    def __init__(self, engine: Engine, clock: Stages) -> None:
        self._engine, self._clock = engine, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def condition(self, embeddings: Tensor) -> Conditioning:
        with self._clock("bank"):
            return self._engine.condition(embeddings)


def render(engine: Engine, plan: SynthesisPlan, start: Start, clock: Any) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3]: prompts encoded, a bank made of them, and the batch sampled and decoded."""
    renderer = Renderer(engine, plan, clock)
    renderer.use_prompts(job.key for job in start.jobs)
    return renderer.images(start)


def timed_pass(engine: Engine, plan: SynthesisPlan, start: Start) -> tuple[dict[str, float], float]:
    """Milliseconds by stage (`STAGES`) of one batch from prompts to files, and bytes an image as written."""
    clock = Stages(engine.device.type)
    watched: Any = _WatchedBank(engine, clock)
    images = render(watched, plan, start, clock)
    found = clock.milliseconds()
    found["encode"] -= found["bank"]  # which is made inside it
    found["write"], size = _written(engine, plan, start, images)
    return {stage: found[stage] for stage in STAGES}, size


def _written(engine: Engine, plan: SynthesisPlan, start: Start, images: NDArray[np.uint8]) -> tuple[float, float]:
    """Milliseconds until all files are on the disk, by synthesis' own writer and threads; and bytes an image."""
    clock = Stages()
    with tempfile.TemporaryDirectory(prefix="dive-bench-") as folder:
        store = LocalStore(Path(folder))
        with clock("write"), DatasetWriter(store, plan, engine.fingerprint, StageClock("write")) as writer:
            waiting = [
                writer.image(image, job.pair, job.side, job.name, job.shard)
                for job, image in zip(start.jobs, images, strict=True)
            ]
        size = sum(file.size for future in waiting if (file := future.result())) / len(waiting)
    return clock.milliseconds()["write"], size
