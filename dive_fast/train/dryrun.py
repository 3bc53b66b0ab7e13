"""Estimates of a personalization run before it starts: steps, views per identity, memory, disk and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.data.prepare import megabytes
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.loop import TrainState
from dive_fast.train.memory import PeakMemory, optimizer_bytes, tensor_bytes
from dive_fast.train.model import Start
from dive_fast.train.personalize import check_disk, finished_adapter, run_id, training_folder
from dive_fast.train.photos import BalancedSampler, LatentPhotos, Photos, only, samples_of, teaching
from dive_fast.train.prior import ClassPhotos, prompt_ids
from dive_fast.train.trainer import Phase, Trainer, phase_configs
from dive_fast.types import Sample
from dive_fast.words import duration

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle

WARM_UP, TIMED = 2, 3  # steps of each phase; memory is measured in the last one of the warm-up


@dataclass(frozen=True)
class PhaseForecast:
    """One phase: its steps, those that a stopped run has done, its trained values, and the cost of a step.

    `optimizer_bytes` are AdamW's moments and the average; `step_bytes` are gradients and activations, an estimate.
    """

    name: str
    steps: int
    done: int
    trainable: int
    seconds: float
    optimizer_bytes: int
    step_bytes: int

    def text(self, batch: str) -> str:
        """For a reader; `batch` is what a step sees, as "32 photos"."""
        done = f" ({self.done:,} done)" if self.done else ""
        return (
            f"{self.name}: {self.steps:,} steps of {batch}{done}; {self.trainable:,} trained values;"
            f" {self.seconds:.3g} s per step; {megabytes(self.optimizer_bytes)} of optimizer and average, about"
            f" {megabytes(self.step_bytes)} of gradients and activations"
        )


@dataclass(frozen=True)
class Forecast:
    """A dry run's result. Bytes are per process; `seen` are expected views per identity: mean, least and most."""

    photos: int
    people: int
    cameras: tuple[str, ...]
    batch: int
    seen: tuple[float, float, float]
    hardly_seen: int  # identities with less than one expected view
    stages: tuple[PhaseForecast, ...]  # the phases, by the key that --json has
    weights_bytes: int
    latents_bytes: int
    disk_bytes: int
    encode_seconds: float
    device: str

    @property
    def memory_bytes(self) -> int:
        """Device memory in the largest phase."""
        return self.weights_bytes + max(phase.optimizer_bytes + phase.step_bytes for phase in self.stages)

    @property
    def seconds(self) -> float:
        return self.encode_seconds + sum((phase.steps - phase.done) * phase.seconds for phase in self.stages)

    def text(self) -> str:
        mean, least, most = self.seen
        lines = [
            "dry run: nothing was written",
            f"data: {self.photos:,} photos of {self.people:,} identities, cameras {', '.join(self.cameras)}",
            f"expected views per identity: mean {mean:,.1f}, least {least:,.1f}, most {most:,.1f}",
        ]
        if self.hardly_seen:
            lines.append(f"{self.hardly_seen:,} identities have less than one view: raise --steps or --exclude them")
        for phase in self.stages:
            lines.append(phase.text(f"{self.batch} photos"))
        lines += [
            f"memory: about {megabytes(self.memory_bytes)} on {self.device}, {megabytes(self.weights_bytes)} of it weights;"
            f" {megabytes(self.latents_bytes)} of latents in main memory",
            f"disk: at most {megabytes(self.disk_bytes)}",
            f"time: about {duration(self.seconds)}, of which {duration(self.encode_seconds)} to encode photos"
            " (without class photos, sheets and loading)",
        ]
        return "\n".join(lines)


def dry_run(
    bundle: ModelBundle,
    photos: Photos,
    out: Path,
    config: PersonalizeConfig,
    init_from: Adapter | None = None,
    device: str = "cpu",
    class_photos: Sequence[Path] = (),
    start: Start | None = None,
) -> Forecast:
    """Estimates the cost of `personalize` with these arguments from a few steps on a few of the photos.

    Writes nothing; `bundle` is changed in place and cannot be used afterwards. Raises what `personalize` raises before
    training.
    """
    run = run_id(bundle, samples_of(photos), config, init_from, class_photos, start)
    done = steps_done(config, out, run, finished_adapter(out, run) is not None)
    return forecast(Trainer(bundle, photos, config, init_from, device, False, start), out, done)


def steps_done(config: PersonalizeConfig, out: Path, run: str, finished: bool) -> dict[str, int]:
    """Returns the steps that each phase of the run has done; a state of another run raises `InputError`."""
    phases = phase_configs(config, training_folder(out), run, progress=False)
    return {phase.name: phase.steps if finished else (phase.saved_state() or {"step": 0})["step"] for phase in phases}


def forecast(trainer: Trainer, out: Path, done: dict[str, int]) -> Forecast:
    """Estimates the cost of a trainer's run to `out`, of which `done` steps of each phase are done."""
    config, bundle, samples = trainer.config, trainer.bundle, samples_of(trainer.photos)
    check_disk(trainer.disk_bytes(), out)
    few = only(trainer.photos, trainer.few())
    begun = time.perf_counter()
    latents = trainer.encode(few, progress=False)
    encoding = 0.0 if isinstance(few, LatentPhotos) else (time.perf_counter() - begun) / len(few) * len(samples)
    stand_in = None
    if config.prior.prior_weight:  # the cost of a photo does not depend on its content
        stand_in = ClassPhotos(latents.latents[:, 0], prompt_ids(bundle, config.prior.prior_prompt))
    phases = trainer.phases(phase_configs(config, training_folder(out), "", progress=False), latents, stand_in)
    views = _views(samples, phases, config)
    return Forecast(
        photos=len(samples),
        people=len({sample.pid for sample in samples}),
        cameras=tuple(camera.name for camera in trainer.cameras),
        batch=config.batch,
        seen=(statistics.fmean(views), min(views), max(views)),
        hardly_seen=sum(count < 1 for count in views),
        stages=tuple(_forecast(trainer, phase, done[phase.config.name]) for phase in phases),
        weights_bytes=tensor_bytes([bundle.text_encoder, bundle.unet]),
        latents_bytes=latents.latents[0].nbytes * len(samples),
        disk_bytes=trainer.disk_bytes(),
        encode_seconds=encoding,
        device=str(trainer.model.device),
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


def measure(train: TrainState, done: int) -> PhaseForecast:
    """Takes and measures a few steps of a phase, of whose steps a stopped run has `done` some."""
    for step in range(WARM_UP - 1):
        train.step(step)
    with PeakMemory() as memory:
        train.step(WARM_UP - 1)
    seconds = []
    for step in range(WARM_UP, WARM_UP + TIMED):
        begun = time.perf_counter()
        loss, _ = train.step(step)
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    return PhaseForecast(
        name=train.config.name,
        steps=train.config.steps,
        done=done,
        trainable=sum(parameter.numel() for parameter in train.parameters),
        seconds=statistics.median(seconds),
        optimizer_bytes=optimizer_bytes(train.parameters, bool(train.config.average)),
        step_bytes=memory.peak,
    )
