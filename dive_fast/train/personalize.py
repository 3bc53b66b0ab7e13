"""Textual inversion of identities and a modality LoRA on a frozen base: DiVE's recipe (arXiv 2503.12472), resumable.

Trains vocabulary rows for each identity (DiVE: one; here as many as its `Phrase` has) and a LoRA on every attention
projection of the UNet; each camera has a fixed code word. Rows have no weight decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dive_fast.data.prepare import check_space
from dive_fast.distributed import first_rank_first, leading
from dive_fast.io import clear_disk_errors, clear_leftovers, lock_folder, sha256_bytes
from dive_fast.models.adapter import Adapter, load_adapter, save_adapter
from dive_fast.models.bundle import ModelBundle, load_bundle
from dive_fast.models.files import fingerprint_of
from dive_fast.train.config import Compute, PersonalizeConfig, Samples
from dive_fast.train.curves import Curve
from dive_fast.train.loop import PhaseConfig, run_phase
from dive_fast.train.model import Start
from dive_fast.train.photos import Photos, samples_of
from dive_fast.train.prior import class_photos_id
from dive_fast.train.trainer import Trainer, phase_configs
from dive_fast.types import InputError, Sample


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
    run, work = run_id(bundle, samples_of(photos), config, init_from, class_photos, start), training_folder(out)
    finished = finished_adapter(out, run)
    if finished is not None:
        remove_states(work)
        clear_leftovers(out.parent.absolute())
        return finished
    configs = phase_configs(config, work, run, progress)
    for phase_config in configs:
        phase_config.saved_state()  # refuses other settings before photos are encoded
    trainer = Trainer(bundle, photos, config, init_from, device, progress, start)
    check_disk(trainer.disk_bytes(), out)
    with locked(out):
        metadata = {**asdict(config), **run_phases(trainer, configs, class_photos), "run": run}
        adapter = trainer.model.adapter(trainer.cameras, metadata)
        with first_rank_first():
            if finished_adapter(out, run) is None:
                save_adapter(adapter, out)
                remove_states(work)
    return adapter


def run_phases(
    trainer: Trainer, configs: tuple[PhaseConfig, PhaseConfig], class_photos: Sequence[Path] = ()
) -> dict[str, Any]:
    """Trains through all phases, from their saved states on; returns what an adapter notes of the photos."""
    latents = trainer.encode(trainer.photos, trainer.progress)
    prior = trainer.class_photos(class_photos, configs[0].work, trainer.progress)
    for phase in trainer.phases(configs, latents, prior):
        trainer.model.set_trainable(phase.rows, phase.lora)
        callback = trainer.sheet_callback(phase.config)
        run_phase(phase.config, trainer.model.groups, phase.loss_at, trainer.model.lora, callback)
    infrared = sorted({s.pid for s in latents.samples if s.modality == "ir"})
    return {"photos": len(latents.samples), "infrared_identities": infrared}


def training_folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def finished_adapter(out: Path, run: str) -> Adapter | None:
    """Returns the adapter that the run `run` finished in `out`, if any; another run's adapter raises `InputError`."""
    if not (out / "adapter.json").exists():
        return None
    adapter = load_adapter(out)
    if adapter.metadata.get("run") != run:
        raise InputError(f"{out} holds an adapter of other data or settings; choose another --out or delete it")
    return adapter


def check_disk(needed: int, out: Path) -> None:
    """Raises `DiveError` when the disk of `out` has too little space for the rest of a run that writes `needed` bytes."""
    written = sum(file.stat().st_size for file in training_folder(out).glob("*") if file.is_file())
    check_space(out, max(0, needed - written))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Locks `out` against other runs for the block; raises `InputError` when another run has the lock."""
    if not leading():
        yield
        return
    work = training_folder(out)
    with clear_disk_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        stream = (work / "lock").open("ab")
    with stream:
        lock_folder(stream, out)
        yield


def remove_states(work: Path) -> None:
    """Removes states, class photos, features of photos, trajectories and images, which a finished run does not need."""
    made = ("class", "features", "rows", "trajectories", "images")
    for pattern in ("*.state", *(f"{kind}-*.safetensors" for kind in made)):
        for file in work.glob(pattern):
            file.unlink(missing_ok=True)


def loss_curves(out: Path, phases: Sequence[str]) -> list[Curve]:
    """The training losses of the folder `out` that a training made."""
    logs = {name: training_folder(out) / f"{name}-loss.jsonl" for name in phases}
    return [Curve(path, "loss", f"{name}: loss") for name, path in logs.items() if path.exists()]


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
    precision = Compute(config.compute.mixed_precision)
    settings = replace(config, save_every=1, tensorboard=False, samples=Samples(), compute=precision)
    parts = [bundle.fingerprint, init_from.fingerprint if init_from else "", repr(settings), *names]
    if config.prior.prior_weight and not class_photos:
        steps, guidance = config.samples.sample_steps, config.samples.sample_guidance
        parts.append(class_photos_id(bundle, config.prior, steps, guidance, config.seed))
    if start is not None:
        parts.append(fingerprint_of(start.phrase, {"rows": start.rows}))
    return sha256_bytes("\n".join(parts).encode())
