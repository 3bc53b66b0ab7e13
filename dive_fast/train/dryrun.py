"""What a personalising run would take, said before it is begun: steps, views of each person, memory, disk and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dive_fast.data.prepare import megabytes
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.course import Course, Lesson, stages_of
from dive_fast.train.loop import Stage, Trainer
from dive_fast.train.needs import PeakMemory, optimizer_bytes, tensor_bytes
from dive_fast.train.personalize import check_disk, finished_adapter, run_id, training_folder
from dive_fast.train.photos import BalancedDraw, LatentPhotos, Photos, only, samples_of, teaching
from dive_fast.train.prior import ClassPhotos, prompt_ids
from dive_fast.types import Sample

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle

WARM_UP, TIMED = 2, 3  # steps of each stage; memory is followed in the last one of the warm-up
_FEW = 16  # photos of each modality that the timed steps learn from


@dataclass(frozen=True)
class StageForecast:
    """One stage: its steps and those of them that a stopped run has done, values that learn, and what a step takes.

    `optimizer_bytes` are AdamW's moments and the average; `step_bytes`, an estimate, gradients and activations.
    """

    name: str
    steps: int
    done: int
    trainable: int
    seconds: float
    optimizer_bytes: int
    step_bytes: int


@dataclass(frozen=True)
class Forecast:
    """A dry run's result. Bytes are a process's; `seen` are views of a person: mean, least and most."""

    photos: int
    people: int
    cameras: tuple[str, ...]
    batch: int
    seen: tuple[float, float, float]
    hardly_seen: int  # people with less than one view to be expected
    stages: tuple[StageForecast, ...]
    weights_bytes: int
    latents_bytes: int
    disk_bytes: int
    encode_seconds: float
    device: str

    @property
    def memory_bytes(self) -> int:
        """Of the device, in the stage that takes most."""
        return self.weights_bytes + max(stage.optimizer_bytes + stage.step_bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        return self.encode_seconds + sum((stage.steps - stage.done) * stage.seconds for stage in self.stages)

    def text(self) -> str:
        mean, least, most = self.seen
        lines = [
            "dry run: nothing was written",
            f"data: {self.photos:,} photos of {self.people:,} people, cameras {', '.join(self.cameras)}",
            f"views of a person: {mean:,.1f} on average, {least:,.1f} the least, {most:,.1f} the most (expected)",
        ]
        if self.hardly_seen:
            lines.append(f"{self.hardly_seen:,} people get less than one view: more steps, or --exclude them")
        for stage in self.stages:
            left = f", {stage.done:,} of them done" if stage.done else ""
            lines.append(
                f"{stage.name}: {stage.steps:,} steps of {self.batch} photos{left}; {stage.trainable:,} values learn;"
                f" {stage.seconds:.3g} s a step; {megabytes(stage.optimizer_bytes)} of optimizer and average, about"
                f" {megabytes(stage.step_bytes)} of gradients and activations"
            )
        lines += [
            f"memory: about {megabytes(self.memory_bytes)} on {self.device}, {megabytes(self.weights_bytes)} of it weights;"
            f" {megabytes(self.latents_bytes)} of latents in main memory (activations are an estimate)",
            f"disk: at most {megabytes(self.disk_bytes)}",
            f"time: about {_duration(self.seconds)}, of which {_duration(self.encode_seconds)} to encode photos (medians of"
            f" {TIMED} steps of each stage after {WARM_UP}; class photos, sheets and loading not counted)",
        ]
        return "\n".join(lines)


def dry_run(
    bundle: ModelBundle,
    photos: Photos,
    out: Path,
    config: PersonalizeConfig,
    onto: Adapter | None = None,
    device: str = "cpu",
    class_photos: Sequence[Path] = (),
) -> Forecast:
    """What `personalize` with these arguments would take, from a few real steps on a few of the photos.

    Writes nothing; `bundle` is changed in place and used up. Raises what `personalize` would raise before training.
    """
    run = run_id(bundle, samples_of(photos), config, onto, class_photos)
    stages = stages_of(config, training_folder(out), run, progress=False)
    finished = finished_adapter(out, run) is not None
    done = {stage.name: stage.steps if finished else _done(stage) for stage in stages}
    course = Course(bundle, photos, config, onto, device, progress=False)
    check_disk(course, out)
    samples = samples_of(course.photos)
    few = only(course.photos, _few(samples))
    begun = time.perf_counter()
    latents = course.encoded(few, progress=False)
    encoding = 0.0 if isinstance(few, LatentPhotos) else (time.perf_counter() - begun) / len(few) * len(samples)
    stand_in = None
    if config.prior.prior_weight:  # what is on a photo takes no longer or shorter
        stand_in = ClassPhotos(latents.latents[:, 0], prompt_ids(bundle, config.prior.prior_prompt))
    lessons = course.lessons(stages, latents, stand_in)
    views = list(_views(samples, lessons, config).values())
    return Forecast(
        photos=len(samples), people=len({sample.pid for sample in samples}),
        cameras=tuple(camera.name for camera in course.cameras), batch=config.batch,
        seen=(statistics.fmean(views), min(views), max(views)), hardly_seen=sum(count < 1 for count in views),
        stages=tuple(_forecast(course, lesson, done[lesson.stage.name]) for lesson in lessons),
        weights_bytes=tensor_bytes([bundle.text_encoder, bundle.unet]),
        latents_bytes=latents.latents[0].nbytes * len(samples), disk_bytes=course.disk_needed(), encode_seconds=encoding,
        device=str(course.learner.device),
    )  # fmt: skip


def _done(stage: Stage) -> int:
    """The steps after which a stopped run will go on."""
    state = stage.saved()
    return 0 if state is None else int(state["step"])


def _few(samples: Sequence[Sample]) -> np.ndarray:
    """Bool [N]: some photos of each modality, spread evenly, as the steps need both where both are there."""
    kept = np.zeros(len(samples), dtype=bool)
    for modality in ("rgb", "ir"):
        rows = np.array([i for i, sample in enumerate(samples) if sample.modality == modality], dtype=np.int64)
        if len(rows):
            kept[rows[np.linspace(0, len(rows) - 1, min(_FEW, len(rows))).astype(np.int64)]] = True
    return kept


def _views(samples: Sequence[Sample], lessons: Sequence[Lesson], config: PersonalizeConfig) -> dict[str, float]:
    """How many photos of each person all lessons draw, on average over seeds."""
    views = dict.fromkeys((sample.pid for sample in samples), 0.0)
    for lesson in lessons:
        taught = samples if lesson.lora else samples_of(only(samples, teaching(samples)))
        draw = BalancedDraw(taught, config.batch, config.ir_share, config.seed)
        for pid, count in draw.expected(lesson.stage.steps).items():
            views[pid] += count
    return views


def _forecast(course: Course, lesson: Lesson, done: int) -> StageForecast:
    """Does a few steps of a lesson."""
    course.learner.learns(lesson.rows, lesson.lora)
    trainer = Trainer(lesson.stage, course.learner.groups, lesson.loss_at, lesson.clip)
    for step in range(WARM_UP - 1):
        trainer.step(step)
    with PeakMemory() as memory:
        trainer.step(WARM_UP - 1)
    seconds = []
    for step in range(WARM_UP, WARM_UP + TIMED):
        begun = time.perf_counter()
        loss, _ = trainer.step(step)
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - begun)
    return StageForecast(
        name=lesson.stage.name, steps=lesson.stage.steps, done=done,
        trainable=sum(parameter.numel() for parameter in trainer.parameters), seconds=statistics.median(seconds),
        optimizer_bytes=optimizer_bytes(trainer.parameters, bool(lesson.stage.average)), step_bytes=memory.peak,
    )  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
