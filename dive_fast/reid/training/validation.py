"""Choosing the best weights of a run on people who are in neither training nor test."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from dive_fast.reid.data.dataset import ImageSet, take
from dive_fast.reid.evaluation.evaluate import score
from dive_fast.reid.evaluation.protocols import Protocol
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.config import ValidationConfig
from dive_fast.types import DiveError, InputError, Sample

PROTOCOL = Protocol()  # the whole gallery at once: nothing is drawn, so scores differ by the weights alone


def held_out(samples: Sequence[Sample], config: ValidationConfig) -> tuple[str, ...]:
    """The `config.people` identities, sorted, that training leaves out, by a draw that `config.split` seeds.

    Only people with real images of both modalities come into question, as scores are of real images. Each has a number
    of its own in the draw, so that two training sets which share people choose the same ones of them, more or less.
    Raises `InputError` when there are too few.
    """
    real = {kind: {s.pid for s in samples if s.source == "real" and s.modality == kind} for kind in ("rgb", "ir")}
    both = real["rgb"] & real["ir"]
    if len(both) < config.people:
        raise InputError(
            f"validation is to hold out {config.people} people, and {len(both)} have real images of both modalities; hold "
            "out fewer"
        )
    drawn = sorted(both, key=lambda pid: hashlib.sha256(f"{config.split}:{pid}".encode()).digest())
    return tuple(sorted(drawn[: config.people]))


def split(samples: Sequence[Sample], people: Collection[str]) -> tuple[list[int], list[int]]:
    """Rows of `samples` to train on, and rows to validate on: the real images of `people`, whose others nobody gets."""
    names = set(people)
    train = [row for row, s in enumerate(samples) if s.pid not in names]
    return train, [row for row, s in enumerate(samples) if s.pid in names and s.source == "real"]


def check_validation(train: Sequence[Sample], val: Sequence[Sample]) -> None:
    """Refuses a validation set that would choose wrongly: people of the training, synthetic images, one modality only."""
    shared = sorted({s.pid for s in train} & {s.pid for s in val})
    if shared:
        raise InputError(
            f"validation: {len(shared)} people are in training too ({', '.join(shared[:5])}); leave them out there"
        )
    made = next((s for s in val if s.source != "real"), None)
    if made:
        raise InputError(f"validation: {made.path} is a synthetic image; choose on real ones only")
    kinds = {s.modality for s in val}
    if kinds != {"rgb", "ir"}:
        raise InputError(f"validation needs visible and infrared images, got only {', '.join(sorted(kinds)) or 'none'}")


def refuse_test_people(val: Sequence[Sample], test: Collection[str]) -> None:
    """Raises `InputError` when validation holds people of a test list: what is chosen on them cannot be tested on them."""
    tested = sorted({s.pid for s in val} & set(test))
    if tested:
        raise InputError(
            f"validation: {len(tested)} people are of the test list ({', '.join(tested[:5])}); weights chosen on them "
            "could not be tested on them: give the val split, or --validation-people"
        )


@dataclass(frozen=True)
class Validation:
    """The images that score a run's weights every `every` steps, and how they were `chosen`."""

    query: ImageSet
    gallery: ImageSet
    every: int
    chosen: str

    @classmethod
    def of(cls, images: ImageSet, config: ValidationConfig, per_epoch: int, chosen: str) -> Validation:
        """Infrared queries and visible gallery of `images`; `per_epoch` steps are an epoch."""
        every = config.every_steps or per_epoch * (config.every_epochs or 1)
        infrared = images.infrared.tolist()
        query, gallery = (
            take(images, [row for row, flag in enumerate(infrared) if flag is kind]) for kind in (True, False)
        )
        return cls(query, gallery, every, chosen)

    def due(self, done: int, total: int) -> bool:
        """Whether weights are scored after `done` steps of `total`: at regular times, and at the end."""
        return done % self.every == 0 or done == total

    def score(self, model: ReidModel, step: int) -> dict[str, float]:
        """mAP, rank-1 and mINP in percent after `step` steps; the model is left in training mode.

        Raises `DiveError` naming the step when features cannot be scored: they are not finite, or nobody can be found.
        """
        model.eval()
        rows = [range(len(self.gallery))]
        try:
            result = score(model, self.query, self.gallery, rows, PROTOCOL, checkpoint="", dataset="validation")
        except InputError as error:
            raise DiveError(f"validation after step {step}: {error}; features that are not finite need a lower lr, or clip, "
                            "or pretrained weights") from error  # fmt: skip
        finally:
            model.train()
        return {"val_map": result.map, "val_rank1": result.rank1, "val_minp": result.minp}

    def facts(self) -> dict[str, Any]:
        """What the run's record says of it."""
        people = sorted(set(self.query.pids) | set(self.gallery.pids))
        return {
            "people": people,
            "query": len(self.query),
            "gallery": len(self.gallery),
            "every": self.every,
            "chosen": self.chosen,
            "protocol": PROTOCOL.facts(),
        }
