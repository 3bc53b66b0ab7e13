"""Trains an encoder: the diffusion loss of one photo, given words that were predicted from other photos of its person.

The base is frozen. The phases are those of personalize, with the mapper in the place of learned rows: the mapper alone on
RGB photos, then the LoRA with the mapper frozen, or both at once; with the adapter `onto`, whose LoRA is frozen, the mapper
alone. Infrared photos are drawn and teach the LoRA, but the encoder sees RGB photos only.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dive_fast.data.names import abbreviate
from dive_fast.distributed import first_rank_first
from dive_fast.encoder.cache import cached_features
from dive_fast.encoder.config import EncoderConfig
from dive_fast.encoder.distribution import Distribution
from dive_fast.encoder.features import FeatureNet
from dive_fast.encoder.folder import RECORD, Encoder, hashed, load_encoder, read_record, save_encoder
from dive_fast.encoder.mapper import Mapper
from dive_fast.encoder.references import References
from dive_fast.io import clear_leftovers, sha256_bytes
from dive_fast.models.fuse import check_base
from dive_fast.models.phrase import Phrase
from dive_fast.models.prompts import TEMPLATES
from dive_fast.train.dryrun import Forecast, forecast, steps_done
from dive_fast.train.embedding import PhraseRows, choices_of
from dive_fast.train.loop import Callback, PhaseConfig
from dive_fast.train.model import IdentityPrompts, PersonalizedModel
from dive_fast.train.personalize import check_disk, locked, remove_states, run_id, run_phases, training_folder
from dive_fast.train.photos import LatentPhotos, Photos, samples_of
from dive_fast.train.trainer import Trainer, phase_configs, spread
from dive_fast.types import Identity, InputError, Sample

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle


class BatchRows(torch.nn.Module):
    """The rows that a batch's captions read: those that the mapper predicted last, float [T, D]."""

    def __init__(self, mapper: Mapper, people: int) -> None:
        super().__init__()
        self.mapper = mapper
        start = mapper.phrase.join(mapper.phrase.start[None], torch.zeros_like(mapper.phrase.absent)[None])
        self.current = start.repeat(people, 1, 1).flatten(0, 1)

    def forward(self) -> Tensor:
        return self.current


class EncoderModel(PersonalizedModel):
    """A frozen base with a trainable mapper and a LoRA, which is frozen too if it comes from `init_from`.

    Captions name every person by the words of the first of `prompts`; row b of a batch reads the b-th rows of `rows`.
    """

    rows: BatchRows
    references: References

    def __init__(
        self,
        bundle: ModelBundle,
        prompts: IdentityPrompts,
        config: EncoderConfig,
        init_from: Adapter | None,
        features: int,
        start: Encoder | None,
    ) -> None:
        self.encoder_config, self._features, self._first = config, features, start
        super().__init__(bundle, prompts, config.training, init_from)
        self._old_words = len(bundle.text_encoder.get_input_embeddings().frozen)

    def new_rows(self, table: Tensor) -> BatchRows:
        if self._first is not None:
            mapper = self._first.mapper.requires_grad_(True)
        else:
            phrase = PhraseRows(choices_of(self.prompts.phrase, self.bundle.tokenizer, table))
            mapper = Mapper(self._features, self.encoder_config.width, phrase, table)
        return BatchRows(mapper, len(self.prompts.identities))

    @property
    def mapper(self) -> Mapper:
        return self.rows.mapper

    @property
    def row_groups(self) -> list[dict[str, Any]]:
        decay, rate = self.config.weight_decay, self.encoder_config.mapper_lr
        return [{"params": list(self.mapper.parameters()), "weight_decay": decay, "lr_scale": rate}]

    @property
    def learning(self) -> bool:
        """Whether the mapper is trained now."""
        return self.mapper.last.weight.requires_grad

    def spoken(self, step: int, samples: Sequence[Sample], ids: Tensor, mine: slice) -> Tensor:
        """Predicts the rows of this process's photos from others of their people, and lets their captions read these."""
        rows, given = self.references.draw(samples, step)
        features = self.references.features[rows[mine]].to(self.device)
        predicted = self.mapper(features, given[mine].to(self.device), self._kept(step, len(rows), mine))
        self.rows.current = predicted.flatten(0, 1)
        ids = ids[mine]
        offsets = torch.arange(len(ids))[:, None] * predicted.shape[1]
        return torch.where(ids >= self._old_words, ids + offsets, ids)

    def _kept(self, step: int, batch: int, mine: slice) -> Tensor | None:
        """The factors of features with some left out, float [B, 1, F]; of the whole batch, for any number of processes."""
        drop = self.encoder_config.feature_drop
        if not (drop and self.learning):
            return None
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step + 2**40)
        kept = torch.rand(batch, 1, len(self.mapper.mean), generator=generator) >= drop
        return (kept[mine] / (1 - drop)).to(self.device)

    def loss(self, *arguments: Any) -> Tensor:
        loss = super().loss(*arguments)
        weight = self.encoder_config.vocabulary_weight
        return loss + weight * self.mapper.penalty(self.rows.current) if weight and self.learning else loss

    @torch.no_grad()
    def predicted(self, pids: Sequence[str]) -> Tensor:
        """Returns the rows float32 [people, words, D] of people from all their RGB photos."""
        found = []
        for pid in pids:
            features = self.references.features[self.references.people[pid]][None].to(self.device)
            given = torch.ones(features.shape[:2], dtype=torch.bool, device=self.device)
            found.append(self.mapper(features, given)[0])
        return torch.stack(found)

    def learned(self) -> tuple[tuple[Identity, ...], Tensor]:
        pids = list(self.references.people)
        identities = tuple(self.prompts.phrase.identity(pid, f"person_{pid}") for pid in pids)
        return identities, self.predicted(pids).flatten(0, 1).cpu()


class EncoderTrainer(Trainer):
    """A trainer whose people have rows by an encoder that is trained. `work` is where features of photos are kept.

    Photos that cannot train it are left out with a warning: of people without two RGB photos.
    """

    model: EncoderModel

    def __init__(
        self,
        bundle: ModelBundle,
        photos: Sequence[Sample],
        config: EncoderConfig,
        source: FeatureNet,
        onto: Adapter | None,
        start: Encoder | None,
        device: str,
        progress: bool,
        work: Path | None = None,
    ) -> None:
        self.encoder_config, self.source, self.first, self.work = config, source, start, work
        super().__init__(bundle, usable(photos), config.training, onto, device, progress)

    def build(self) -> tuple[EncoderModel, IdentityPrompts]:
        config, seen = self.encoder_config, sorted({sample.pid for sample in samples_of(self.photos)})
        if self.first is not None:
            check_base(self.first.base_fingerprint, self.bundle, "the encoder of --start-from")
        phrase = Phrase(config.training.phrase if self.first is None else self.first.phrase)
        shown = seen[:: max(1, len(seen) // config.training.samples.sheet_people)]
        identities = tuple(phrase.identity(pid, f"person_{pid}") for pid in shown)
        templates = (self.template,) if self.template is not None else TEMPLATES
        model = EncoderModel(
            self.bundle,
            IdentityPrompts(identities, phrase, templates),
            config,
            self.init_from,
            self.source.dims,
            self.first,
        )
        everyone = tuple(Identity(pid, identities[0].placeholder) for pid in seen)
        return model, IdentityPrompts(everyone, phrase, templates)

    @property
    def template(self) -> str | None:
        """The only template of captions, if there is one: of `onto`, of the encoder that training starts from, or given."""
        return next(
            (x.template for x in (self.init_from, self.encoder_config.training, self.first) if x and x.template), None
        )

    def encode(self, photos: Photos, progress: bool) -> LatentPhotos:
        """As `Trainer`; also reads the features of all photos that the encoder sees."""
        seen = [sample for sample in samples_of(photos) if sample.modality == "rgb"]
        features = cached_features(self.source, seen, self.work, progress)
        config = self.encoder_config
        self.model.references = References(tuple(seen), features, config.pooled, config.training.seed)
        if self.first is None:
            self.model.mapper.normalise_by(features)
        return super().encode(photos, progress)

    def few(self) -> np.ndarray:
        """Photos of a few people, as a dry run needs two RGB photos of each."""
        samples = samples_of(self.photos)
        first = {sample.pid for sample, kept in zip(samples, spread(samples, 4), strict=True) if kept}
        kept, counts = np.zeros(len(samples), dtype=bool), Counter[tuple[str, str]]()
        for row, sample in enumerate(samples):
            counts[sample.pid, sample.modality] += 1
            kept[row] = sample.pid in first and counts[sample.pid, sample.modality] <= 2
        return kept

    def sheet_callback(self, phase: PhaseConfig) -> Callback | None:
        callback = super().sheet_callback(phase)
        if callback is None:
            return None

        def write(step: int) -> None:
            pids = [identity.pid for identity in self.model.prompts.identities]
            self.model.rows.current = self.model.predicted(pids).flatten(0, 1)
            callback.run(step)

        return Callback(callback.every, write)

    def disk_bytes(self) -> int:
        seen = sum(sample.modality == "rgb" for sample in samples_of(self.photos))
        people = len({sample.pid for sample in samples_of(self.photos)})
        rows = 2 * people * len(self.model.rows.current) * self.model.rows.current.shape[1] * 4
        return super().disk_bytes() + seen * len(self.model.mapper.mean) * 2 + rows

    def encoder(self, metadata: dict[str, Any]) -> Encoder:
        """Returns what was trained, with the rows of everyone whom it saw."""
        model = self.model
        tokens = model.predicted(list(model.references.people)).flatten(1).cpu()
        names = {*model.references.people, *self.source.people}
        before = self.first.people if self.first is not None else frozenset()
        return Encoder(
            base_fingerprint=model.base_fingerprint,
            phrase=model.prompts.phrase.text,
            template=model.prompts.templates[0],
            source=self.source,
            mapper=model.mapper.eval().requires_grad_(False),
            people=before | {hashed(pid) for pid in names},
            distribution=Distribution.fit(tokens),
            metadata=metadata,
        )


def usable(photos: Sequence[Sample]) -> list[Sample]:
    """Returns the photos of people with two RGB photos, one to see and one to draw; the others are named in a warning.

    Raises `InputError` unless two people are left.
    """
    counts = Counter(sample.pid for sample in photos if sample.modality == "rgb")
    everyone = sorted({sample.pid for sample in photos})
    few = [pid for pid in everyone if counts[pid] < 2]
    if len(everyone) - len(few) < 2:
        raise InputError(
            f"an encoder learns from people with at least two RGB photos, one to see and one to draw:"
            f" {len(everyone) - len(few):,} of {len(everyone):,} people have them, needs two; give more photos"
        )
    if few:
        warnings.warn(
            f"{len(few):,} of {len(everyone):,} people are left out, as they have fewer than two RGB photos:"
            f" {abbreviate(few)}",
            stacklevel=3,
        )
    left = set(everyone) - set(few)
    return [sample for sample in photos if sample.pid in left]


def train_encoder(
    bundle: ModelBundle,
    photos: Sequence[Sample],
    out: Path,
    config: EncoderConfig,
    source: FeatureNet,
    onto: Adapter | None = None,
    start: Encoder | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> Encoder:
    """Trains an encoder on the photos of many people; writes the folder `out` and returns the encoder.

    Without `onto`, `out` also holds an adapter: the LoRA that was learned, and the people's rows. With `start`, an encoder
    of the same base, its mapper is trained on. `bundle` is changed in place and cannot be used afterwards. `out`.training
    holds loss logs, and the features and states from which a rerun resumes. Raises what `personalize` raises.
    """
    run, work = encoder_run_id(bundle, photos, config, source, onto, start), training_folder(out)
    if finished_encoder(out, run):
        remove_states(work)
        clear_leftovers(out.parent.absolute())
        return load_encoder(out, source.folder if source.kind == "clip" else None)
    configs = phase_configs(config.training, work, run, progress)
    for phase in configs:
        phase.saved_state()  # refuses other settings before photos are read
    trainer = EncoderTrainer(bundle, photos, config, source, onto, start, device, progress, work)
    check_disk(trainer, out)
    with locked(out):
        metadata = {**asdict(config), **run_phases(trainer, configs), "run": run}
        encoder = trainer.encoder(metadata)
        adapter = trainer.model.adapter(trainer.cameras, metadata) if onto is None and config.training.steps else None
        with first_rank_first():
            if not finished_encoder(out, run):
                save_encoder(encoder, out, adapter)
                remove_states(work)
    return encoder


def dry_run_encoder(
    bundle: ModelBundle,
    photos: Sequence[Sample],
    out: Path,
    config: EncoderConfig,
    source: FeatureNet,
    onto: Adapter | None = None,
    start: Encoder | None = None,
    device: str = "cpu",
) -> Forecast:
    """Estimates the cost of `train_encoder` with these arguments; writes nothing, and raises what it raises at first."""
    run = encoder_run_id(bundle, photos, config, source, onto, start)
    done = steps_done(config.training, out, run, finished_encoder(out, run))
    return forecast(EncoderTrainer(bundle, photos, config, source, onto, start, device, False), out, done)


def finished_encoder(out: Path, run: str) -> bool:
    """Returns whether the run `run` finished the encoder `out`; another run's encoder raises `InputError`."""
    if not (out / RECORD).exists():
        return False
    if read_record(out)[1]["facts"].get("run") != run:
        raise InputError(f"{out} holds an encoder of other data or settings; choose another --out or delete it")
    return True


def encoder_run_id(
    bundle: ModelBundle,
    photos: Sequence[Sample],
    config: EncoderConfig,
    source: FeatureNet,
    onto: Adapter | None,
    start: Encoder | None,
) -> str:
    """Returns the id of a run's data and settings, so that no state is resumed with others."""
    own = {name: value for name, value in asdict(config).items() if name != "training"}
    parts = [run_id(bundle, photos, config.training, onto), repr(own), source.fingerprint]
    return sha256_bytes("\n".join([*parts, start.fingerprint if start else ""]).encode())
