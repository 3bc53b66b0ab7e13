"""Validation: the best weights of a run are chosen on identities that are in neither training nor test."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from dive_fast.data.names import abbreviate
from dive_fast.reid.data.dataset import ImageSet
from dive_fast.reid.evaluation.evaluate import embed
from dive_fast.reid.evaluation.protocols import Protocol, Trial
from dive_fast.reid.evaluation.task import Labels, RetrievalTask
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.config import ValidationConfig
from dive_fast.types import DiveError, InputError, Sample

PROTOCOL = Protocol()  # the whole gallery at once: nothing is drawn, so scores differ by the weights alone


def held_out(samples: Sequence[Sample], config: ValidationConfig) -> tuple[str, ...]:
    """Returns the `config.people` identities, sorted, that training leaves out, drawn by the seed `config.split`.

    Only identities with real images of both modalities are drawn. The draw ranks each identity on its own, so training sets
    that share identities leave out mostly the same ones. Raises `InputError` for too few identities.
    """
    real = {kind: {s.pid for s in samples if s.source == "real" and s.modality == kind} for kind in ("rgb", "ir")}
    both = real["rgb"] & real["ir"]
    if len(both) < config.people:
        raise InputError(f"--validation-people {config.people} exceeds the {len(both)} identities with real pairs")
    drawn = sorted(both, key=lambda pid: hashlib.sha256(f"{config.split}:{pid}".encode()).digest())
    return tuple(sorted(drawn[: config.people]))


def split(samples: Sequence[Sample], people: Collection[str]) -> tuple[list[Sample], list[Sample]]:
    """Returns the samples to train on and to validate on: the real images of `people`; their synthetic ones are unused."""
    train = [s for s in samples if s.pid not in people]
    return train, [s for s in samples if s.pid in people and s.source == "real"]


def check_validation(train: Sequence[Sample], val: Sequence[Sample]) -> None:
    """Raises `InputError` for validation identities that are in training, synthetic images, and a missing modality."""
    shared = sorted({s.pid for s in train} & {s.pid for s in val})
    if shared:
        raise InputError(f"validation: {len(shared)} identities are in training too ({abbreviate(shared)})")
    synthetic = next((s for s in val if s.source != "real"), None)
    if synthetic:
        raise InputError(f"validation: {synthetic.path} is a synthetic image; give real ones only")
    kinds = {s.modality for s in val}
    if kinds != {"rgb", "ir"}:
        raise InputError(f"validation needs visible and infrared images, got only {', '.join(sorted(kinds)) or 'none'}")


def refuse_test_people(val: Sequence[Sample], test: Collection[str]) -> None:
    """Raises `InputError` for validation identities of a test list: weights chosen on them cannot be tested on them."""
    tested = sorted({s.pid for s in val} & set(test))
    if tested:
        raise InputError(
            f"validation: {len(tested)} identities are in the test list ({abbreviate(tested)}); give the val split"
        )


@dataclass(frozen=True)
class Validation:
    """The images that score a run's weights every `every` steps, and how they were `chosen`."""

    query: ImageSet
    gallery: ImageSet
    every: int
    chosen: str

    @classmethod
    def from_images(cls, images: ImageSet, config: ValidationConfig, per_epoch: int, chosen: str) -> Validation:
        """Searches the visible images with the infrared ones; `per_epoch` steps are an epoch."""
        query, gallery = (images.take(kind.nonzero()[:, 0].tolist()) for kind in (images.infrared, ~images.infrared))
        return cls(query, gallery, config.every_steps or per_epoch * (config.every_epochs or 1), chosen)

    def score(self, model: ReidModel, step: int) -> dict[str, float]:
        """Returns mAP, rank-1 and mINP in percent after `step` steps; the model stays in training mode.

        Raises `DiveError` naming the step for features that are not finite or find nobody.
        """
        labels = Labels.from_samples(self.query.samples, self.gallery.samples)
        task = RetrievalTask(labels, [Trial()], PROTOCOL, "validation")
        model.eval()
        try:
            result = task.result(
                task.score_features(embed(model, self.query), embed(model, self.gallery)), checkpoint=""
            )
        except InputError as error:
            raise DiveError(f"validation after step {step}: {error}; lower lr or set clip") from error
        finally:
            model.train()
        return {"val_map": result.map, "val_rank1": result.rank1, "val_minp": result.minp}

    def metadata(self) -> dict[str, Any]:
        """Returns what the run's record holds of the validation."""
        return {
            "people": sorted(set(self.query.pids) | set(self.gallery.pids)),
            "query": len(self.query),
            "gallery": len(self.gallery),
            "every": self.every,
            "chosen": self.chosen,
            "protocol": PROTOCOL.metadata(),
        }
