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

from dive_fast.distributed import first_rank_first
from dive_fast.encoder.config import EncoderConfig
from dive_fast.encoder.features import FeatureNet
from dive_fast.encoder.folder import RECORD, Encoder, load_encoder, read_record, save_encoder
from dive_fast.encoder.trainer import EncoderTrainer
from dive_fast.io import clear_leftovers, sha256_bytes
from dive_fast.train.dryrun import Forecast, forecast, steps_done
from dive_fast.train.personalize import check_disk, locked, remove_states, run_id, run_phases, training_folder
from dive_fast.train.trainer import phase_configs
from dive_fast.types import InputError, Sample

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
    run, work = encoder_run_id(bundle, photos, config, source, onto, start), training_folder(out)
    if finished_encoder(out, run):
        remove_states(work)
        clear_leftovers(out.parent.absolute())
        return load_encoder(out, source.folder if source.kind == "clip" else None)
    configs = phase_configs(config.training, work, run, progress)
    for phase in configs:
        phase.saved_state()  # refuses other settings before photos are read
    trainer = EncoderTrainer(bundle, photos, config, source, onto, start, device, progress, work)
    check_disk(trainer.disk_bytes(), out)
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
