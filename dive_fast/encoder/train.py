"""Trains an encoder: the diffusion loss of one photo, given words that were predicted from other photos of its person.

The base is frozen. The phases are those of personalize, with the mapper in the place of learned rows: the mapper alone on
RGB photos, then the LoRA with the mapper frozen, or both at once; with the adapter `onto`, whose LoRA is frozen, the mapper
alone. Infrared photos are drawn and teach the LoRA, but the encoder sees RGB photos only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.encoder.config import EncoderConfig
from dive_fast.encoder.features import FeatureNet
from dive_fast.encoder.folder import RECORD, Encoder, load_encoder, save_encoder
from dive_fast.encoder.trainer import EncoderTrainer
from dive_fast.io import sha256_bytes
from dive_fast.train.dryrun import Forecast, forecast
from dive_fast.train.personalize import run_id, run_phases
from dive_fast.train.run import Run, training_folder
from dive_fast.train.trainer import phase_configs
from dive_fast.types import Sample

if TYPE_CHECKING:
    from dive_fast.models.adapter import Adapter
    from dive_fast.models.bundle import ModelBundle


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
    run = _run(bundle, photos, out, config, source, onto, start, progress)
    if run.resume():  # also refuses other settings, before photos are read
        return load_encoder(out, source.folder if source.kind == "clip" else None)
    trainer = EncoderTrainer(bundle, photos, config, source, onto, start, device, progress, run.work)
    with run.working(trainer.disk_bytes()):
        metadata = {**asdict(config), **run_phases(trainer, run), "run": run.id}
        encoder = trainer.encoder(metadata)
        adapter = trainer.model.adapter(trainer.cameras, metadata) if onto is None and config.training.steps else None
        run.save(lambda: save_encoder(encoder, out, adapter))
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
    return forecast(
        _run(bundle, photos, out, config, source, onto, start, progress=False),
        lambda: EncoderTrainer(bundle, photos, config, source, onto, start, device, False),
    )


def _run(
    bundle: ModelBundle,
    photos: Sequence[Sample],
    out: Path,
    config: EncoderConfig,
    source: FeatureNet,
    onto: Adapter | None,
    start: Encoder | None,
    progress: bool,
) -> Run:
    """The run of these data and settings, so that no state is resumed with others."""
    own = {name: value for name, value in asdict(config).items() if name != "training"}
    parts = [run_id(bundle, photos, config.training, onto), repr(own), source.fingerprint]
    run = sha256_bytes("\n".join([*parts, start.fingerprint if start else ""]).encode())
    return Run(out, run, RECORD, phase_configs(config.training, training_folder(out), run, progress))
