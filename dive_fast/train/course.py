"""How photos teach a model: its stages, each with what learns in it and its loss, and what they take of the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.distributed import check_launcher, leading
from dive_fast.models.prompts import PromptEncoder, PromptTable
from dive_fast.tensorboard import require_tensorboard
from dive_fast.train.cameras import cameras_of
from dive_fast.train.diffusion import Objective
from dive_fast.train.learner import Captions, Learner, People
from dive_fast.train.loop import LossAt, Stage, Watch
from dive_fast.train.needs import optimizer_bytes
from dive_fast.train.parallel import my_rows, part_of_batch
from dive_fast.train.photos import (
    BalancedDraw,
    LatentPhotos,
    Photos,
    encode_photos,
    image_size,
    latent_size,
    only,
    samples_of,
    teaching,
    visiting,
)
from dive_fast.train.precision import check_precision
from dive_fast.train.prior import ClassPhotos, made_class_photos, read_class_photos
from dive_fast.train.samples import Sampler, SheetMaker
from dive_fast.train.tagger import load_tagger, read_people
from dive_fast.types import Camera, Identity, InputError, Sample

if TYPE_CHECKING:
    import torch

    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle
    from dive_fast.train.personalize import PersonalizeConfig

STAGES = ("identities", "personalize")
_LOG_LINE = 200  # bytes of a logged step at most, TensorBoard's included
_SMALL_FILES = 2_000_000  # an adapter's JSON, and what file systems round up


def stages_of(config: PersonalizeConfig, work: Path, run: str, progress: bool) -> tuple[Stage, Stage]:
    """The stage of identities alone, which may have no steps, and that of all or of the LoRA."""
    alone, whole = (
        Stage(
            name, work, steps, 1.0, config.warmup, config.save_every, average=config.average, identity=run,
            progress=progress, accumulate=config.compute.accumulate, precision=config.compute.mixed_precision,
            tensorboard=config.tensorboard,
        )
        for name, steps in zip(STAGES, (config.identity_steps, config.steps), strict=True)
    )  # fmt: skip
    return alone, whole


@dataclass(frozen=True)
class Lesson:
    """A stage of training: which parts learn in it, its loss, and what is clipped together."""

    stage: Stage
    rows: bool
    lora: bool
    loss_at: LossAt
    clip: Sequence[torch.nn.Parameter]


class Course:
    """People and, unless given, LoRA put into a model on `device`, and how photos teach them.

    `bundle` is changed in place. Data or settings that cannot work raise `InputError`, before anything is encoded.
    """

    def __init__(
        self, bundle: ModelBundle, photos: Photos, config: PersonalizeConfig,
        onto: Adapter | None, device: str, progress: bool,
    ) -> None:  # fmt: skip
        _check_settings(photos, config, onto, device)
        samples = samples_of(photos)
        people = People.of(sorted({s.pid for s in samples}), config, onto)
        self.cameras = _known_cameras(bundle, samples, people.identities, onto)
        if onto is not None and not config.identities_from_ir:  # the LoRA is fixed: the rest would teach nothing
            photos = only(photos, teaching(samples))
        _check_taught(samples_of(photos), config, alone=onto is None and config.identity_steps > 0)
        self.photos, self.config, self.onto, self._bundle = photos, config, onto, bundle
        self.learner = Learner(bundle, people, config, onto)
        if config.words_from is not None:
            tagger = load_tagger(config.words_from)
            self.learner.rows.start_at(read_people(tagger, samples_of(photos), people.phrase, progress and leading()))
        self.captions = Captions(bundle, self.cameras, people, config)  # the tokenizer knows the people now
        self.learner.place(device)

    @property
    def sampler(self) -> Sampler:
        samples, precision = self.config.samples, self.config.compute.mixed_precision
        return Sampler(self._bundle, precision, samples.sample_steps, samples.sample_guidance)

    def encoded(self, photos: Photos, progress: bool) -> LatentPhotos:
        """Photos as latents, those of the course or some of them; a damaged one raises `InputError` that names it."""
        if isinstance(photos, LatentPhotos):
            return photos
        with visiting(self._bundle.vae, self.learner.device):
            return encode_photos(self._bundle, photos, progress=progress)

    def class_photos(self, files: Sequence[Path], work: Path, progress: bool) -> ClassPhotos | None:
        """The class photos in `files`, else made by the base and kept in `work`; None where they count nothing."""
        prior = self.config.prior
        if not prior.prior_weight:
            return None
        if not files:  # the LoRA adds nothing yet
            return made_class_photos(self.sampler, prior, self.config.seed, work, progress)
        with visiting(self._bundle.vae, self.learner.device):
            return read_class_photos(self._bundle, files, prior.prior_prompt, progress)

    def lessons(self, stages: tuple[Stage, Stage], photos: LatentPhotos, prior: ClassPhotos | None) -> list[Lesson]:
        """What is to be learned from `photos`, in turn."""
        config, lora, (alone, whole) = self.config, self.learner.lora, stages
        of_all = Objective.from_config(self._bundle.scheduler_config, config.weight_cap, config.noisy_share)
        of_all = replace(of_all, weighting=config.weighting, snr_gamma=config.snr_gamma)
        of_rows = replace(of_all, noisy_share=config.identity_noisy_share, of_epsilon=True)
        if self.onto is not None:
            return [Lesson(whole, True, True, self._loss_at(photos, of_rows, None), lora)]
        last = Lesson(whole, not config.identity_steps, True, self._loss_at(photos, of_all, prior), lora)
        if not config.identity_steps:
            return [last]
        visible = photos.only(photos.teaching)
        return [Lesson(alone, True, False, self._loss_at(visible, of_rows, None), []), last]

    def _loss_at(self, photos: LatentPhotos, objective: Objective, prior: ClassPhotos | None) -> LossAt:
        draw = BalancedDraw(photos.samples, self.config.batch, self.config.ir_share, self.config.seed)

        def loss_at(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss = self.learner.loss(step, photos, self.captions, draw, objective)
            if prior is None:
                return loss, {}
            of_class = self.learner.class_loss(step, prior, objective)
            return loss + self.config.prior.prior_weight * of_class, {"prior": of_class.detach()}

        return loss_at

    def watch(self, stage: Stage) -> Watch | None:
        """Sheets of samples beside the stage's log, if there are to be any."""
        samples, people = self.config.samples, self.learner.people
        if not samples.sheet_every:
            return None
        table = PromptTable(people.identities, self.cameras, people.templates[0], self.learner.base_fingerprint, "")
        maker = SheetMaker(self.sampler, PromptEncoder(self._bundle.tokenizer, table), samples.sheet_people)
        return Watch(samples.sheet_every, lambda step: maker.write(stage.work / f"{stage.name}-{step:08d}.png"))

    def disk_needed(self) -> int:
        """Bytes that a run writes at most: adapter, states (a new one beside the old one), logs, sheets and class photos."""
        config, samples = self.config, self.config.samples
        learned = [self.learner.rows.free, self.learner.rows.logits, *self.learner.lora]
        values = sum(parameter.numel() for parameter in learned) * 4
        adapter = values + (0 if self.onto is None else _tensor_size(self.onto))
        states = 2 * (values + optimizer_bytes(learned, bool(config.average)))
        steps = config.identity_steps + config.steps
        height, width = image_size(self._bundle)
        images = min(samples.sheet_people, len(self.learner.people.identities)) * len(self.cameras)
        sheets = steps // samples.sheet_every * images * height * width * 3 if samples.sheet_every else 0
        latent_bytes = self._bundle.vae.config.latent_channels * prod(latent_size(self._bundle)) * 4
        made = config.prior.prior_count * latent_bytes if config.prior.prior_weight else 0
        return adapter + states + steps // 10 * _LOG_LINE + sheets + made + _SMALL_FILES


def _check_settings(photos: Photos, config: PersonalizeConfig, onto: Adapter | None, device: str) -> None:
    """Raises `InputError` for settings that cannot work here or together; an extra that is missing, `DiveError`."""
    if not samples_of(photos):
        raise InputError("there are no training photos; check the data folder and the filters")
    check_precision(config.compute.mixed_precision, device)
    check_launcher(config.compute.mixed_precision)
    with part_of_batch(0, config.compute.accumulate):
        my_rows(config.batch)
    if config.tensorboard:
        require_tensorboard()
    if onto is not None and config.prior.prior_weight:
        raise InputError(
            "class photos teach a LoRA, and that of the adapter to learn onto stays as it is; leave them out"
        )
    if config.words_from is not None and isinstance(photos, LatentPhotos):
        raise InputError("words are read off photos, and a prepared set's latents are none; give the raw sets instead")


def _tensor_size(adapter: Adapter) -> int:
    return sum(tensor.nbytes for tensor in (adapter.embeddings, *adapter.lora.values()))


def _check_taught(samples: Sequence[Sample], config: PersonalizeConfig, alone: bool) -> None:
    """Raises `InputError` for people of whom no batch has a photo that teaches them; `alone`: in a stage of their own.

    Their words would stay what they start as, and stand for nobody.
    """
    teaches = teaching(samples) | (config.identities_from_ir and not alone)
    taught = samples_of(only(samples, teaches))
    drawn = BalancedDraw(taught if alone else samples, config.batch, config.ir_share, config.seed).counts
    never = sorted({s.pid for s in samples} - {s.pid for s in taught if drawn[s.modality]})
    if never:
        raise InputError(
            f"{len(never):,} people would learn nothing, first {never[0]!r}: with an infrared share of {config.ir_share} no"
            f" batch of {config.batch} has photos that teach them; change these, or leave the people out"
        )


def _known_cameras(
    bundle: ModelBundle, samples: Sequence[Sample], identities: tuple[Identity, ...], onto: Adapter | None
) -> tuple[Camera, ...]:
    """The cameras of the photos, or of the adapter to learn onto; one that these do not fit raises `InputError`."""
    cameras = cameras_of(samples)
    if onto is None:
        return cameras
    if onto.base_fingerprint != bundle.fingerprint:
        raise InputError(
            f"the adapter to learn onto was trained on base {onto.base_fingerprint[:12]}…, this base is"
            f" {bundle.fingerprint[:12]}…; give the base model it was trained on"
        )
    known = {camera.name: camera for camera in onto.cameras}
    unknown = [camera.name for camera in cameras if camera.name not in known]
    if unknown:
        raise InputError(f"the adapter knows cameras {sorted(known)}, not {unknown}; its LoRA cannot learn new ones")
    taken = sorted({i.pid for i in onto.identities} & {i.pid for i in identities})
    if taken:
        raise InputError(f"the adapter already knows {len(taken)} of these people, first {taken[0]!r}; leave them out")
    return onto.cameras
