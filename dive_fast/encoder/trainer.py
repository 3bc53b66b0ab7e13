"""The phases of an encoder's training: those of personalize, with a mapper in the place of learned rows."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.data.names import abbreviate
from dive_fast.encoder.cache import cached_features
from dive_fast.encoder.config import EncoderConfig
from dive_fast.encoder.distribution import Distribution
from dive_fast.encoder.features import FeatureNet
from dive_fast.encoder.folder import Encoder, halved, hashed
from dive_fast.encoder.model import EncoderModel
from dive_fast.encoder.references import References
from dive_fast.models.fuse import check_base
from dive_fast.models.prompts import TEMPLATES, check_vocabulary
from dive_fast.train.loop import Callback, PhaseConfig
from dive_fast.train.model import IdentityPrompts, described
from dive_fast.train.photos import LatentPhotos, Photos, samples_of
from dive_fast.train.trainer import Trainer, spread
from dive_fast.types import InputError, Sample

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle


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
        text = config.training.phrase if self.first is None else self.first.phrase
        shown = seen[:: max(1, len(seen) // config.training.samples.sheet_people)]
        phrase, identities = described(shown, text, config.training, self.init_from)
        templates = (self.template,) if self.template is not None else TEMPLATES
        check_vocabulary(identities, (), templates, "train-encoder")
        model = EncoderModel(
            self.bundle,
            IdentityPrompts(identities, phrase, templates),
            config,
            self.init_from,
            self.source,
            self.first,
        )
        everyone = tuple(replace(identities[0], pid=pid) for pid in seen)
        return model, IdentityPrompts(everyone, phrase, templates)

    @property
    def template(self) -> str | None:
        """The only template of captions, if there is one: of `onto`, given, or of the encoder that training starts from."""
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
        model.mapper.load_state_dict(halved(model.mapper))  # what the folder will hold decides all rows
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
