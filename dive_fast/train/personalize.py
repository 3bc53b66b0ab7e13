"""Textual inversion of identities and a modality LoRA on a frozen base: DiVE's recipe (arXiv 2503.12472), resumable.

Trains vocabulary rows for each identity (DiVE: one; here as many as its `Phrase` has) and a LoRA on every attention
projection of the UNet; each camera has a fixed code word. Rows have no weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dive_fast.io import sha256_bytes
from dive_fast.models.adapter import Adapter, load_adapter, save_adapter
from dive_fast.models.bundle import ModelBundle, load_bundle
from dive_fast.train.config import PersonalizeConfig, Samples
from dive_fast.train.loop import run_phase
from dive_fast.train.model import Start
from dive_fast.train.photos import Photos, samples_of
from dive_fast.train.prior import class_photos_id
from dive_fast.train.run import Run, deciding, training_folder
from dive_fast.train.trainer import Trainer, phase_configs
from dive_fast.types import Sample


def personalize(
    bundle: ModelBundle | Path | str,
    photos: Photos,
    out: Path | str,
    config: PersonalizeConfig,
    init_from: Adapter | Path | str | None = None,
    progress: bool = True,
    device: str = "cpu",
    class_photos: Sequence[Path] = (),
    start: Start | None = None,
) -> Adapter:
    """Learns the identities of `photos` and, without `init_from`, their cameras; writes and returns the adapter.

    Identities learn first, on RGB photos and the base; then the LoRA, with identities frozen. With `identity_steps` 0 both
    learn at once, as in DiVE. With `init_from`, an adapter of this base, its LoRA and identities stay bit for bit and only
    rows of new identities learn. Both may be given by the folder or name that `load_bundle` and `load_adapter` take; a
    loaded bundle is changed in place and cannot be used afterwards.

    `photos` are files or the latents of a prepared set. `class_photos` are the files for `config.prior`; without any the
    base generates them. `start` are rows that the identities start from. The folder `out` appears whole at the end;
    `out`.training holds loss logs and the states from which a rerun resumes. Bad data raises `InputError` before training, a
    full disk `DiveError`.
    """
    out, bundle = Path(out), load_bundle(bundle)
    init_from = None if init_from is None else load_adapter(init_from)
    run = adapter_run(out, run_id(bundle, samples_of(photos), config, init_from, class_photos, start), config, progress)
    if run.resume():  # also refuses other settings, before photos are encoded
        return load_adapter(out)
    trainer = Trainer(bundle, photos, config, init_from, device, progress, start)
    with run.working(trainer.disk_bytes()):
        metadata = {**asdict(config), **run_phases(trainer, run, class_photos), "run": run.id}
        adapter = trainer.model.adapter(trainer.cameras, metadata)
        run.save(lambda: save_adapter(adapter, out))
    return adapter


def adapter_run(out: Path, run: str, config: PersonalizeConfig | None = None, progress: bool = True) -> Run:
    """Returns the run `run` that writes the adapter `out`, with the phases of `config` if it has some."""
    phases = () if config is None else phase_configs(config, training_folder(out), run, progress)
    return Run(out, run, "adapter.json", phases)


def run_phases(trainer: Trainer, run: Run, class_photos: Sequence[Path] = ()) -> dict[str, Any]:
    """Trains through all phases, from their saved states on; returns what an adapter notes of the photos."""
    latents = trainer.encode(trainer.photos, trainer.progress)
    prior = trainer.class_photos(class_photos, run.work, trainer.progress)
    for phase in trainer.phases(run.phases, latents, prior):
        trainer.model.set_trainable(phase.rows, phase.lora)
        callback = trainer.sheet_callback(phase.config)
        run_phase(phase.config, trainer.model.groups, phase.loss_at, trainer.model.lora, callback)
    infrared = sorted({s.pid for s in latents.samples if s.modality == "ir"})
    return {"photos": len(latents.samples), "infrared_identities": infrared}


def run_id(
    bundle: ModelBundle,
    samples: Sequence[Sample],
    config: PersonalizeConfig,
    init_from: Adapter | None,
    class_photos: Sequence[Path] = (),
    start: Start | None = None,
) -> str:
    """Returns the id of a run's data and settings, so that no state is resumed with others.

    Settings that change results by rounding at most, and those of sheets, do not count.
    """
    names = [f"{s.pid}/{s.camera}/{s.path.name}" for s in samples] + [f"class/{path.name}" for path in class_photos]
    settings = replace(deciding(config), samples=Samples())
    parts = [bundle.fingerprint, init_from.fingerprint if init_from else "", repr(settings), *names]
    if config.prior.prior_weight and not class_photos:
        steps, guidance = config.samples.sample_steps, config.samples.sample_guidance
        parts.append(class_photos_id(bundle, config.prior, steps, guidance, config.seed))
    if start is not None:
        parts.append(f"{start.made_by}/{start.phrase}")
    return sha256_bytes("\n".join(parts).encode())
