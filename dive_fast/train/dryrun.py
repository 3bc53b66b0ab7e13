"""Estimates of a training before it starts, from a few steps of it: views per identity, memory, disk and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.loop import TrainState
from dive_fast.train.memory import PeakMemory, optimizer_bytes, tensor_bytes
from dive_fast.train.model import Start
from dive_fast.train.personalize import adapter_run, run_id
from dive_fast.train.photos import BalancedSampler, LatentPhotos, Photos, only, samples_of, teaching
from dive_fast.train.prior import ClassPhotos, prompt_ids
from dive_fast.train.run import Run
from dive_fast.train.trainer import Phase, Trainer
from dive_fast.types import Sample, to_dict
from dive_fast.words import duration, size

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
            f" {self.seconds:.3g} s per step; {size(self.optimizer_bytes)} of optimizer and average, about"
            f" {size(self.step_bytes)} of gradients and activations"
        )


@dataclass(frozen=True)
class Forecast:
    """A dry run's result. Bytes are per process.

    `examples` are what a step sees `batch` of, as "photos"; `about` tells of them, and `numbers` has what it counts.
    `data_bytes` is what they take in main memory, and `data_seconds` the time that `making` those takes that are missing.
    """

    examples: str
    about: tuple[str, ...]
    numbers: Mapping[str, Any]
    batch: int
    stages: tuple[PhaseForecast, ...]  # the phases, by the key that --json has
    weights_bytes: int
    data_bytes: int
    data_seconds: float
    making: str
    disk_bytes: int
    device: str

    @property
    def memory_bytes(self) -> int:
        """Device memory in the largest phase."""
        return self.weights_bytes + max(phase.optimizer_bytes + phase.step_bytes for phase in self.stages)

    @property
    def seconds(self) -> float:
        return self.data_seconds + sum((phase.steps - phase.done) * phase.seconds for phase in self.stages)

    def text(self) -> str:
        return "\n".join(
            [
                "dry run: nothing was written",
                *self.about,
                *(phase.text(f"{self.batch} {self.examples}") for phase in self.stages),
                f"memory: about {size(self.memory_bytes)} on {self.device}, {size(self.weights_bytes)} of it weights;"
                f" {size(self.data_bytes)} of {self.examples} in main memory",
                f"disk: at most {size(self.disk_bytes)}",
                f"time: about {duration(self.seconds)}, of which {duration(self.data_seconds)} for {self.making}",
            ]
        )

    def summary(self) -> dict[str, Any]:
        """All numbers, for --json."""
        own = {name: value for name, value in to_dict(self).items() if name not in ("about", "numbers")}
        return {**self.numbers, **own, "memory_bytes": self.memory_bytes, "seconds": self.seconds}


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
    return forecast(
        adapter_run(out, run, config, progress=False),
        lambda: Trainer(bundle, photos, config, init_from, device, False, start),
    )


def forecast(run: Run, begin: Callable[[], Trainer]) -> Forecast:
    """Estimates the cost of the run of the trainer that `begin` returns; a state of another run raises `InputError`."""
    done, finished, trainer = run.steps_done(), run.finished(), begin()
    config, bundle, samples = trainer.config, trainer.bundle, samples_of(trainer.photos)
    run.check_disk(trainer.disk_bytes())
    few = only(trainer.photos, trainer.few())
    begun = time.perf_counter()
    latents = trainer.encode(few, progress=False)
    free = finished or isinstance(few, LatentPhotos)
    encoding = 0.0 if free else (time.perf_counter() - begun) / len(samples_of(few)) * len(samples)
    stand_in = None
    if config.prior.prior_weight:  # the cost of a photo does not depend on its content
        stand_in = ClassPhotos(latents.latents[:, 0], prompt_ids(bundle, config.prior.prior_prompt))
    phases = trainer.phases(run.phases, latents, stand_in)
    done_of = dict(zip(run.phases, done, strict=True))
    about, numbers = _about(samples, [camera.name for camera in trainer.cameras], _views(samples, phases, config))
    return Forecast(
        examples="photos",
        about=about,
        numbers=numbers,
        batch=config.batch,
        stages=tuple(_forecast(trainer, phase, done_of[phase.config]) for phase in phases),
        weights_bytes=tensor_bytes([bundle.text_encoder, bundle.unet]),
        data_bytes=latents.latents[0].nbytes * len(samples),
        data_seconds=encoding,
        making="encoding photos (without class photos, sheets and loading)",
        disk_bytes=trainer.disk_bytes(),
        device=str(trainer.model.device),
    )


def _about(
    samples: Sequence[Sample], cameras: Sequence[str], views: Sequence[float]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What a forecast says of photos, and its numbers; `seen` are expected views per identity: mean, least and most."""
    people, seen = len({sample.pid for sample in samples}), (statistics.fmean(views), min(views), max(views))
    hardly = sum(count < 1 for count in views)
    lines = (
        f"data: {len(samples):,} photos of {people:,} identities, cameras {', '.join(cameras)}",
        "expected views per identity: mean {:,.1f}, least {:,.1f}, most {:,.1f}".format(*seen),
        *([f"{hardly:,} identities have less than one view: raise --steps or --exclude them"] if hardly else []),
    )
    numbers = {"photos": len(samples), "people": people, "cameras": cameras, "seen": seen, "hardly_seen": hardly}
    return lines, numbers


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
