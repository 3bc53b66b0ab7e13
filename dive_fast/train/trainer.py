"""The phases of personalization: what each trains, its loss, and the disk space that a run needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dive_fast.data.names import free_prefix
from dive_fast.distributed import leading
from dive_fast.models.fuse import check_base
from dive_fast.models.prompts import PromptEncoder, PromptTable
from dive_fast.train.cameras import cameras_of
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.diffusion import DiffusionLoss
from dive_fast.train.loop import Callback, Loss, LossAt, PhaseConfig
from dive_fast.train.model import Captions, IdentityPrompts, PersonalizedModel, Start
from dive_fast.train.photos import (
    BalancedSampler,
    LatentPhotos,
    Photos,
    encode_photos,
    image_size,
    latent_shape,
    on_device,
    only,
    samples_of,
    teaching,
)
from dive_fast.train.prior import ClassPhotos, generate_class_photos, read_class_photos
from dive_fast.train.run import check_training, work_bytes
from dive_fast.train.samples import ImageSampler, write_sheet
from dive_fast.train.tagger import load_tagger, tag_identities
from dive_fast.types import Camera, InputError, Sample, shown

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle

PHASES = ("identities", "personalize")
_FEW = 16  # photos of each modality in the steps of a dry run
_SMALL_FILES = 2_000_000  # an adapter's JSON, and what file systems round up


def phase_configs(config: PersonalizeConfig, work: Path, run: str, progress: bool) -> tuple[PhaseConfig, PhaseConfig]:
    """Returns the phase of identities alone, which may have no steps, and the phase of the LoRA or of everything."""
    identities, lora = (
        PhaseConfig.of(config, name, work, steps, 1.0, run, progress)
        for name, steps in zip(PHASES, (config.identity_steps, config.steps), strict=True)
    )
    return identities, lora


@dataclass(frozen=True)
class Phase:
    """A phase of training: the parts that it trains, and its loss. The LoRA's gradients are clipped together."""

    config: PhaseConfig
    rows: bool
    lora: bool
    loss_at: LossAt


class Trainer:
    """Identities and, without `init_from`, a LoRA in a model on `device`, with the photos that train them.

    `bundle` is changed in place. Data or settings that cannot work raise `InputError` before any photo is encoded.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        photos: Photos,
        config: PersonalizeConfig,
        init_from: Adapter | None,
        device: str,
        progress: bool,
        start: Start | None = None,
    ) -> None:
        _check_settings(photos, config, init_from, device, start is not None)
        samples = samples_of(photos)
        self.cameras = _known_cameras(bundle, samples, init_from, config.ir_words)
        if init_from is not None and not config.identities_from_ir:  # the LoRA is frozen: other photos train nothing
            photos = only(photos, teaching(samples))
        _check_taught(samples_of(photos), config, alone=init_from is None and config.identity_steps > 0)
        self.photos, self.config, self.init_from, self.bundle, self.start = photos, config, init_from, bundle, start
        self.progress = progress and leading()
        self.model, prompts = self.build()
        self.captions = Captions(bundle, self.cameras, prompts, config)  # the tokenizer now has the identities' words
        self.model.to(device)

    def build(self) -> tuple[PersonalizedModel, IdentityPrompts]:
        """Returns the model, and the identities as captions name them."""
        config, samples = self.config, samples_of(self.photos)
        pids = sorted({s.pid for s in samples})
        prompts = IdentityPrompts.from_config(pids, config, self.init_from, self.start)
        check_new(self.init_from, pids)
        model = PersonalizedModel(self.bundle, prompts, config, self.init_from, self.start)
        if config.words_from is not None:
            tagger = load_tagger(config.words_from)
            model.rows.start_at(tag_identities(tagger, samples, prompts.phrase, self.progress))
        return model, prompts

    def few(self) -> np.ndarray:
        """Selects some photos of each modality, spread evenly, bool [N]: enough for the steps of a dry run."""
        return spread(samples_of(self.photos))

    @property
    def sampler(self) -> ImageSampler:
        samples, precision = self.config.samples, self.config.compute.mixed_precision
        return ImageSampler(self.bundle, precision, samples.sample_steps, samples.sample_guidance)

    def encode(self, photos: Photos, progress: bool) -> LatentPhotos:
        """Returns photos of this training as latents; a damaged one raises `InputError` that names it."""
        if isinstance(photos, LatentPhotos):
            return photos
        with on_device(self.bundle.vae, self.model.device):
            return encode_photos(self.bundle, photos, progress=progress)

    def class_photos(self, files: Sequence[Path], work: Path, progress: bool) -> ClassPhotos | None:
        """Returns the class photos in `files`, or generates them into `work`; None where their weight is 0."""
        prior = self.config.prior
        if not prior.prior_weight:
            return None
        if not files:  # the untrained LoRA adds nothing
            return generate_class_photos(self.sampler, prior, self.config.seed, work, progress)
        with on_device(self.bundle.vae, self.model.device):
            return read_class_photos(self.bundle, files, prior.prior_prompt, progress)

    def phases(self, configs: Sequence[PhaseConfig], photos: LatentPhotos, prior: ClassPhotos | None) -> list[Phase]:
        """Returns the phases that train on `photos`, in order."""
        config, (alone, whole) = self.config, configs
        everything = DiffusionLoss.from_config(
            self.bundle.scheduler_config,
            config.weight_cap,
            config.noisy_fraction,
            weighting=config.weighting,
            snr_gamma=config.snr_gamma,
        )
        rows = replace(everything, noisy_fraction=config.identity_noisy_fraction, of_epsilon=True)
        if self.init_from is not None:
            return [Phase(whole, True, True, self._loss_at(photos, rows, None))]
        last = Phase(whole, not config.identity_steps, True, self._loss_at(photos, everything, prior))
        if not config.identity_steps:
            return [last]
        return [Phase(alone, True, False, self._loss_at(photos.only(photos.teaching), rows, None)), last]

    def _loss_at(self, photos: LatentPhotos, diffusion: DiffusionLoss, prior: ClassPhotos | None) -> LossAt:
        batches = BalancedSampler(photos.samples, self.config.batch, self.config.ir_fraction, self.config.seed)

        def loss_at(step: int) -> Loss:
            loss = self.model.loss(step, photos, self.captions, batches, diffusion)
            if prior is None:
                return loss, {}
            class_loss = self.model.class_loss(step, prior, diffusion)
            return loss + self.config.prior.prior_weight * class_loss, {"prior": class_loss.detach()}

        return loss_at

    def sheet_callback(self, phase: PhaseConfig) -> Callback | None:
        """Returns the callback that writes sheets of samples beside the phase's log; None without sheets."""
        samples, prompts = self.config.samples, self.model.prompts
        if not samples.sheet_every:
            return None
        table = PromptTable(prompts.identities, self.cameras, prompts.templates[0], self.model.base_fingerprint, "")
        bank = PromptEncoder(self.bundle.tokenizer, table)

        def write(step: int) -> None:
            write_sheet(self.sampler, bank, samples.sheet_people, phase.work / f"{phase.name}-{step:08d}.png")

        return Callback(samples.sheet_every, write)

    def disk_bytes(self) -> int:
        """Returns the bytes that a run writes at most: adapter, states (new beside old), logs, sheets and class photos."""
        config, samples = self.config, self.config.samples
        parameters = [*self.model.rows.parameters(), *self.model.lora]
        trained = sum(parameter.nbytes for parameter in parameters)
        words = sum(len(identity.words) for identity in self.model.prompts.identities)
        adapter = words * self.model.words.frozen.shape[1] * 4 + sum(parameter.nbytes for parameter in self.model.lora)
        if self.init_from is not None:
            adapter += sum(tensor.nbytes for tensor in (self.init_from.embeddings, *self.init_from.lora.values()))
        steps = config.identity_steps + config.steps
        images = min(samples.sheet_people, len(self.model.prompts.identities)) * len(self.cameras)
        class_photos = bool(config.prior.prior_weight) * config.prior.prior_count * prod(latent_shape(self.bundle)) * 4
        work = work_bytes(config, trained, steps, samples.sheet_every, images * prod(image_size(self.bundle)))
        return adapter + work + class_photos + _SMALL_FILES


def spread(samples: Sequence[Sample], most: int = _FEW) -> np.ndarray:
    """Selects at most `most` photos of each modality, spread evenly, bool [N]."""
    kept = np.zeros(len(samples), dtype=bool)
    for modality in ("rgb", "ir"):
        rows = np.array([i for i, sample in enumerate(samples) if sample.modality == modality], dtype=np.int64)
        if len(rows):
            kept[rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]] = True
    return kept


def _check_settings(
    photos: Photos, config: PersonalizeConfig, init_from: Adapter | None, device: str, started: bool
) -> None:
    """Raises `InputError` for settings that cannot work here or together, `DiveError` for a missing extra."""
    if not samples_of(photos):
        raise InputError("there are no training photos; check the data folder and the filters")
    check_training(config, device)
    if not (config.steps or (config.identity_steps and init_from is None) or started):
        raise InputError("no step trains anything: --steps is 0; raise it")
    if init_from is not None and config.prior.prior_weight:
        raise InputError(
            "class photos train a LoRA, and --init-from keeps its adapter's LoRA; leave --prior-weight out"
        )
    if config.words_from is not None and isinstance(photos, LatentPhotos):
        raise InputError("--words-from needs photos, and a prepared set has latents only; give the raw sets instead")


def _check_taught(samples: Sequence[Sample], config: PersonalizeConfig, alone: bool) -> None:
    """Raises `InputError` for identities that no batch trains; `alone` if a phase trains identities alone."""
    teaches = teaching(samples) | (config.identities_from_ir and not alone)
    taught = samples_of(only(samples, teaches))
    drawn = BalancedSampler(taught if alone else samples, config.batch, config.ir_fraction, config.seed).counts
    share = "that of the photos" if config.ir_fraction is None else f"of {config.ir_fraction}"
    never = sorted({s.pid for s in samples} - {s.pid for s in taught if drawn[s.modality]})
    if never:
        raise InputError(
            f"{len(never):,} identities would stay untrained, first {shown(never[0])}: no batch of {config.batch} with an"
            f" infrared fraction {share} has photos that train them; change --batch or"
            " --ir-fraction, or --exclude them"
        )


def _known_cameras(
    bundle: ModelBundle,
    samples: Sequence[Sample],
    init_from: Adapter | None,
    ir_words: str,
) -> tuple[Camera, ...]:
    """Returns the cameras of the photos, or of `init_from`, which must fit the base and the photos (else `InputError`)."""
    cameras = cameras_of(samples, ir_words)
    if init_from is None:
        return cameras
    check_base(init_from.base_fingerprint, bundle, "the adapter of --init-from")
    known = [camera.name for camera in init_from.cameras]
    unknown = [camera.name for camera in cameras if camera.name not in known]
    if unknown:
        raise InputError(f"the adapter knows cameras {sorted(known)}, not {unknown}; its LoRA cannot learn new ones")
    return init_from.cameras


def check_new(adapter: Adapter | None, pids: Sequence[str]) -> None:
    """Raises `InputError` if an adapter already has one of these identities."""
    known = set() if adapter is None else {identity.pid for identity in adapter.identities}
    taken = sorted(known & set(pids))
    if taken:
        raise InputError(
            f"the adapter already has {len(taken):,} of these identities, first {shown(taken[0])}; leave them out, or give"
            f" the set a prefix, as ,prefix={free_prefix(pids, known)}, if they only share names"
        )
