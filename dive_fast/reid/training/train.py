"""Training of a cross-modality embedding: samples in, a checkpoint folder out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dive_fast.distributed import check_launcher, first_rank_first, leading, process_group
from dive_fast.progress import ProgressBar, log
from dive_fast.reid.data.batches import batches
from dive_fast.reid.data.dataset import ImageSet, Table, check_samples, fingerprint, load_images
from dive_fast.reid.data.sampler import PairSampler
from dive_fast.reid.training import checkpoint
from dive_fast.reid.training.checkpoint import Progress
from dive_fast.reid.training.config import ReidConfig, learning_rate
from dive_fast.reid.training.parallel import check_processes
from dive_fast.reid.training.train_state import TrainState
from dive_fast.reid.training.validation import Validation, check_validation, held_out, split
from dive_fast.tensorboard import TensorBoardLog, require_tensorboard
from dive_fast.training_state import damaged_state
from dive_fast.types import InputError, Sample, to_dict


def train_reid(
    train: Sequence[Sample],
    config: ReidConfig,
    out: Path | str,
    *,
    val: Sequence[Sample] | None = None,
    device: str = "cpu",
    progress: bool = True,
    save_every: int = 200,
    cache: Path | None = None,
    tensorboard: bool = False,
) -> Path:
    """Trains on `train` and returns `out`, which then holds `model.safetensors`, `reid.json` and `log.jsonl`.

    With identities held out for validation (`config.validation`), or samples of others in `val`, `out` also holds the best
    weights, `best.safetensors`. `cache` is a folder for the decoded images (`load_images`). `tensorboard` also writes the
    log to `out/tensorboard`.

    A stopped run resumes from its last save (every `save_every` steps) and ends with the same result; a finished one is
    returned unchanged. On one machine equal seeds give equal weights. Under `torchrun` or `accelerate launch --multi_gpu`
    the processes share each batch's identities and take the steps of one process, to rounding.
    Raises `InputError` for bad samples (see `load_images`, `PairSampler`, `check_validation`) or an `out` of another run,
    and `DiveError` for a loss or gradient that is not finite.
    """
    out = Path(out)
    check_launcher({"fp32": "no"}.get(config.precision, config.precision), "--precision")
    if tensorboard:
        require_tensorboard()
    check_samples(train, "train images")
    if val is not None:
        check_samples(val, "validation images")
        check_validation(train, val)
        if config.validation.people:
            raise InputError("validation: give --val or --validation-people, not both")
    run = {"config": to_dict(config), "data": fingerprint(train)}
    if val is not None:
        run["val_data"] = fingerprint(val)
    if checkpoint.finished(out, run):
        return out
    chosen = "given"
    if config.validation.people:
        train, val = split(train, set(held_out(train, config.validation)))
        chosen = f"held out of training, draw {config.validation.split}"
    table = Table.from_samples(train)
    check_processes(config)
    PairSampler(table, config, table.synthetic.numpy())  # raises for bad identities before hours of decoding
    with process_group(device):
        size = config.model.height, config.model.width
        bars = ("train images", "validation images") if progress and leading() else (None, None)
        with first_rank_first() if cache is not None else nullcontext():  # the first rank writes the cache
            images = load_images(train, *size, progress=bars[0], cache=cache)
            val_images = None if val is None else load_images(val, *size, progress=bars[1], cache=cache)
        options: dict[str, Any] = {"device": device, "progress": progress, "save_every": save_every}
        return fit(images, config, out, run=run, val=val_images, chosen=chosen, tensorboard=tensorboard, **options)


def fit(
    images: ImageSet,
    config: ReidConfig,
    out: Path,
    *,
    run: dict[str, Any],
    val: ImageSet | None = None,
    chosen: str = "given",
    device: str = "cpu",
    progress: bool = True,
    save_every: int = 200,
    on_step: Callable[[], None] | None = None,
    added: Sequence[str] | None = None,
    tensorboard: bool = False,
) -> Path:
    """Trains as `train_reid` does, on decoded images; `run` is what a resumed run must share.

    `config.synthetic_fraction` counts the identities `added`, by default those with a synthetic image. The record names how
    `val` was `chosen`.
    """
    with process_group(device):
        leads = leading()
        counted = images.synthetic.numpy()
        if added is not None:
            counted = np.isin(np.array(images.pids)[images.labels.numpy()], list(added))
        check_processes(config)
        sampler = PairSampler(images, config, counted)
        if sampler.dropped and progress and leads:
            names = ", ".join(sampler.dropped[:10])
            log(f"left out {len(sampler.dropped)} identities that lack a modality: {names} ...")
        per_epoch = sampler.steps_per_epoch
        validation = None if val is None else Validation.from_images(val, config.validation, per_epoch, chosen)
        state = TrainState(config, len(images.pids), device)
        saved, done = checkpoint.resume(out, run)
        if saved is not None:
            with damaged_state(out / checkpoint.STATE):
                state.restore(saved)
        elif leads:
            checkpoint.start(out, state.state(), run)
        total = sampler.total_steps
        scalars = TensorBoardLog(out / "tensorboard", done.step + 1) if tensorboard and leads else None
        state.model.train()
        steps = range(done.step, total)
        bar = ProgressBar(
            steps, initial=done.step, total=total, desc="reid", unit="step", disable=not (progress and leads)
        )
        # On a GPU, convolutions then sum in the same order every time.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            for step, batch in zip(bar, batches(images, sampler, steps, config), strict=True):
                scale = learning_rate(step, total, config, per_epoch)
                row = {"step": step + 1, "lr": config.lr * scale, **state.step(batch, scale, step + 1)}
                done.step = step + 1
                done.rows.append(row)
                if leads and validation is not None and (step + 1 == total or (step + 1) % validation.every == 0):
                    row |= _validate(validation, state, done)
                if scalars is not None:
                    scalars.add(step + 1, **{name: value for name, value in row.items() if name != "step"})
                if on_step is not None:
                    on_step()
                bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.2f}")
                if leads and (step + 1) % save_every == 0 and step + 1 < total:
                    checkpoint.save(out, state.state(), done, run)
        metadata = {
            "pids": list(images.pids),
            "images": len(images),
            "infrared": int(images.infrared.sum()),
            "synthetic": int(images.synthetic.sum()),
            "dropped": list(sampler.dropped),
        }
        if validation is not None:
            metadata["validation"] = validation.metadata()
        with first_rank_first():  # so every rank finds the result
            if leads:
                checkpoint.finish(out, state.model, done, run, metadata)
    return out


def _validate(validation: Validation, state: TrainState, done: Progress) -> dict[str, float]:
    """Scores the weights and keeps them if they are the best so far; of equal ones, the first."""
    scores = validation.score(state.model, done.step)
    if done.best is None or scores["val_map"] > done.best["val_map"]:
        done.best = {"step": done.step, **scores}
        done.best_weights = checkpoint.weights_of(state.model)
    return scores
