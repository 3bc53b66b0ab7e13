"""Training of a cross-modality embedding: samples in, a checkpoint folder out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dive_fast.distributed import check_launcher, first_rank_first, leading, process_group, rank_and_size
from dive_fast.reid.data.batches import batches
from dive_fast.reid.data.dataset import ImageSet, Table, check_samples, fingerprint, load_images, take
from dive_fast.reid.data.sampler import PairSampler
from dive_fast.reid.training import checkpoint
from dive_fast.reid.training.checkpoint import Progress
from dive_fast.reid.training.config import ReidConfig, learning_rate, share_at
from dive_fast.reid.training.learner import Learner
from dive_fast.reid.training.parallel import my_rows
from dive_fast.reid.training.validation import Validation, check_validation, held_out, split
from dive_fast.tensorboard import TensorBoardLog, require_tensorboard
from dive_fast.types import InputError, Sample, to_dict

__all__ = ["ReidConfig", "fit", "train_reid"]


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

    With people held out for validation (`config.validation`), or other people's samples in `val`, also the weights that
    were best on them, `best.safetensors`. With `cache`, a folder, the decoded images lie there (`load_images`). With
    `tensorboard` the log is also written for it, to `out/tensorboard`.

    A run that was stopped goes on from its last save (every `save_every` steps) to the result that it would have had;
    a finished one is returned as it is. On one machine equal seeds give equal weights. Under `torchrun` or `accelerate
    launch --multi_gpu` the processes share each batch's people and learn what one would, to rounding.
    Raises `InputError` for bad samples (see `load_images`, `PairSampler`, `check_validation`) or an `out` of another run,
    and `DiveError` when loss or gradient is no longer finite.
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
            raise InputError("validation: give samples for it or a number of people to hold out, not both")
    run = {"config": to_dict(config), "data": fingerprint(train)}
    if val is not None:
        run["val_data"] = fingerprint(val)
    if checkpoint.finished(out, run):
        return out
    chosen = "given"
    if config.validation.people:
        rows, val_rows = split(train, held_out(train, config.validation))
        train, val, chosen = [train[row] for row in rows], [train[row] for row in val_rows], _held_out_by(config)
    table = Table.of(train)
    pair_sampler(table, config, table.synthetic.numpy())  # says what is wrong with the people before hours of decoding
    with process_group(device):
        size = config.model.height, config.model.width
        bars = ("train images", "validation images") if progress and leading() else (None, None)
        with first_rank_first() if cache is not None else nullcontext():  # which makes the files
            images = load_images(train, *size, progress=bars[0], cache=cache)
            val_images = None if val is None else load_images(val, *size, progress=bars[1], cache=cache)
        return fit(
            images, config, out, run=run, val=val_images, chosen=chosen, device=device, progress=progress,
            save_every=save_every, tensorboard=tensorboard,
        )  # fmt: skip


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
    """`train_reid` on images that are in memory already; `run` is what a resumed run must share.

    `added` names the identities whom `config.synthetic_share` is for; by default those that have a synthetic image.
    Without `val`, people are held out of `images` if the config says so; `chosen` says in the record how `val` came about.
    """
    with process_group(device):
        if val is None and config.validation.people:
            rows, val_rows = split(images.samples, held_out(images.samples, config.validation))
            images, val, chosen = take(images, rows), take(images, val_rows), _held_out_by(config)
        counted = images.synthetic.numpy()
        if added is not None:
            counted = np.isin(np.array(images.pids)[images.labels.numpy()], list(added))
        sampler = pair_sampler(images, config, counted)
        if sampler.dropped and progress and leading():
            names = ", ".join(sampler.dropped[:10])
            print(f"left out {len(sampler.dropped)} identities that lack a modality: {names} ...")
        validation = None if val is None else Validation.of(val, config.validation, sampler.steps_per_epoch, chosen)
        learner = Learner(config, len(images.pids), device)
        with _repeatable(device):
            _run(learner, images, sampler, validation, out, run, progress, save_every, on_step, tensorboard)
    return out


def _run(
    learner: Learner,
    images: ImageSet,
    sampler: PairSampler,
    validation: Validation | None,
    out: Path,
    run: dict[str, Any],
    progress: bool,
    save_every: int,
    on_step: Callable[[], None] | None,
    tensorboard: bool,
) -> None:
    """The steps from the last save to the end; the first rank alone writes and validates."""
    config, leads = learner.config, leading()
    state, done = checkpoint.resume(out, run)
    if state is not None:
        learner.restore(state)
    total = _total(sampler, config)
    scalars = TensorBoardLog(out / "tensorboard", done.step + 1) if tensorboard and leads else None
    learner.model.train()
    steps = range(done.step, total)
    bar = tqdm(steps, initial=done.step, total=total, desc="reid", unit="step", disable=not (progress and leads))
    for step, batch in zip(bar, batches(images, sampler, steps, config), strict=True):
        scale = learning_rate(step, total, config, sampler.steps_per_epoch)
        row = {"step": step + 1, "lr": config.lr * scale, **learner.step(batch, scale, step + 1)}
        done.step = step + 1
        done.rows.append(row)
        if leads and validation is not None and validation.due(step + 1, total):
            row |= _validate(validation, learner, done)
        if scalars is not None:
            scalars.add(step + 1, **{name: value for name, value in row.items() if name != "step"})
        if on_step is not None:
            on_step()
        bar.set_postfix(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.2f}")
        if leads and (step + 1) % save_every == 0 and step + 1 < total:
            checkpoint.save(out, learner.state(), done, run)
    facts = {
        "pids": list(images.pids),
        "images": len(images),
        "infrared": int(images.infrared.sum()),
        "synthetic": int(images.synthetic.sum()),
        "dropped": list(sampler.dropped),
    }
    if validation is not None:
        facts["validation"] = validation.facts()
    with first_rank_first():  # so that every rank finds the result
        if leads:
            checkpoint.finish(out, learner.model, done, run, facts)


def _validate(validation: Validation, learner: Learner, done: Progress) -> dict[str, float]:
    """Scores the weights and keeps them if they are the best so far; of equals, the first."""
    scores = validation.score(learner.model, done.step)
    if done.best is None or scores["val_map"] > done.best["val_map"]:
        done.best = {"step": done.step, **scores}
        done.best_weights = checkpoint.weights_of(learner.model)
    return scores


def pair_sampler(table: Table | ImageSet, config: ReidConfig, counted: NDArray[np.bool_]) -> PairSampler:
    """The sampler of a training, following the schedule of the share if there is one; `counted` marks synthetic images."""
    my_rows(0, config.identities)
    if config.missing == "visible" and rank_and_size()[1] > 1:
        raise InputError("missing='visible' can leave a process without infrared images, and its stem's norms without "
                         "partners; with several processes choose 'drop' or 'refuse'")  # fmt: skip
    sampler = PairSampler(
        table.labels.numpy(),
        table.infrared.numpy(),
        identities=config.identities,
        per_modality=config.per_modality,
        seed=config.seed,
        missing=config.missing,
        synthetic=counted,
        synthetic_share=config.synthetic_share,
        names=table.pids,
    )
    points = config.synthetic_schedule
    if points is not None:
        total = _total(sampler, config)
        sampler.follow(lambda step: share_at(step, total, points), total)
    return sampler


def _total(sampler: PairSampler, config: ReidConfig) -> int:
    return config.steps or sampler.steps_per_epoch * (config.epochs or 0)


def _held_out_by(config: ReidConfig) -> str:
    return f"held out of training, draw {config.validation.split}"


def _repeatable(device: str) -> AbstractContextManager[None]:
    """On a GPU: convolutions whose sums come in the same order every time, for the time of the block."""
    if device == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
