"""Estimates of a personalization run before it starts: steps, views per identity, memory, disk and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.forecast import Forecast, PhaseForecast, measure
from dive_fast.train.loop import TrainState
from dive_fast.train.memory import tensor_bytes
from dive_fast.train.model import Start
from dive_fast.train.personalize import personalize_run, run_id
from dive_fast.train.photos import BalancedSampler, LatentPhotos, Photos, only, samples_of, teaching
from dive_fast.train.prior import ClassPhotos, prompt_ids
from dive_fast.train.run import Run, check_disk
from dive_fast.train.trainer import Phase, Trainer
from dive_fast.types import Sample

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle


@dataclass(frozen=True)
class PhotosForecast(Forecast):
    """A dry run of personalize or train-encoder. `seen` are expected views per identity: mean, least and most."""

    photos: int
    people: int
    cameras: tuple[str, ...]
    seen: tuple[float, float, float]
    hardly_seen: int  # identities with less than one expected view

    examples = "photos"
    data = "latents"
    making = "encode photos (without class photos, sheets and loading)"

    def about(self) -> list[str]:
        mean, least, most = self.seen
        lines = [
            f"data: {self.photos:,} photos of {self.people:,} identities, cameras {', '.join(self.cameras)}",
            f"expected views per identity: mean {mean:,.1f}, least {least:,.1f}, most {most:,.1f}",
        ]
        if self.hardly_seen:
            lines.append(f"{self.hardly_seen:,} identities have less than one view: raise --steps or --exclude them")
        return lines


def dry_run(
    bundle: ModelBundle,
    photos: Photos,
    out: Path,
    config: PersonalizeConfig,
    init_from: Adapter | None = None,
    device: str = "cpu",
    class_photos: Sequence[Path] = (),
    start: Start | None = None,
) -> PhotosForecast:
    """Estimates the cost of `personalize` with these arguments from a few steps on a few of the photos.

    Writes nothing; `bundle` is changed in place and cannot be used afterwards. Raises what `personalize` raises before
    training.
    """
    run = run_id(bundle, samples_of(photos), config, init_from, class_photos, start)
    return forecast(
        personalize_run(out, run, config, progress=False),
        lambda: Trainer(bundle, photos, config, init_from, device, False, start),
    )


def forecast(run: Run, begin: Callable[[], Trainer]) -> PhotosForecast:
    """Estimates the cost of the run of the trainer that `begin` returns; a state of another run raises `InputError`."""
    done, trainer = run.steps_done(), begin()
    config, bundle, samples = trainer.config, trainer.bundle, samples_of(trainer.photos)
    check_disk(trainer.disk_bytes(), run.out)
    few = only(trainer.photos, trainer.few())
    begun = time.perf_counter()
    latents = trainer.encode(few, progress=False)
    encoding = 0.0 if isinstance(few, LatentPhotos) else (time.perf_counter() - begun) / len(few) * len(samples)
    stand_in = None
    if config.prior.prior_weight:  # the cost of a photo does not depend on its content
        stand_in = ClassPhotos(latents.latents[:, 0], prompt_ids(bundle, config.prior.prior_prompt))
    phases = trainer.phases(run.phases, latents, stand_in)
    done_of = dict(zip(run.phases, done, strict=True))
    views = _views(samples, phases, config)
    return PhotosForecast(
        batch=config.batch,
        stages=tuple(_forecast(trainer, phase, done_of[phase.config]) for phase in phases),
        weights_bytes=tensor_bytes([bundle.text_encoder, bundle.unet]),
        data_bytes=latents.latents[0].nbytes * len(samples),
        data_seconds=encoding,
        disk_bytes=trainer.disk_bytes(),
        device=str(trainer.model.device),
        photos=len(samples),
        people=len({sample.pid for sample in samples}),
        cameras=tuple(camera.name for camera in trainer.cameras),
        seen=(statistics.fmean(views), min(views), max(views)),
        hardly_seen=sum(count < 1 for count in views),
    )


def _views(samples: Sequence[Sample], phases: Sequence[Phase], config: PersonalizeConfig) -> list[float]:
    """The expected number of photos of each identity over all phases."""
    views: dict[str, float] = {}
    for phase in phases:
        taught = samples if phase.lora else samples_of(only(samples, teaching(samples)))
        batches = BalancedSampler(taught, config.batch, config.ir_fraction, config.seed)
        for pid, count in batches.expected(phase.config.steps).items():
            views[pid] = views.get(pid, 0.0) + count
    return list(views.values())


def _forecast(trainer: Trainer, phase: Phase, done: int) -> PhaseForecast:
    """Runs and measures a few steps of a phase."""
    trainer.model.set_trainable(phase.rows, phase.lora)
    return measure(TrainState(phase.config, trainer.model.groups, phase.loss_at, trainer.model.lora), done)
