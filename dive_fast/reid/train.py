"""Training of a cross-modality embedding: samples in, a checkpoint folder out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from dive_fast.io import (
    atomic_path,
    canonical_json,
    read_json,
    read_jsonl,
    sha256_bytes,
    sha256_file,
    write_json,
    write_jsonl,
)
from dive_fast.reid.dataset import AugmentConfig, ImageSet, augment, load_images
from dive_fast.reid.losses import batch_hard_triplet, cross_entropy, weighted_triplet
from dive_fast.reid.model import ModelConfig, ReidModel
from dive_fast.reid.sampler import Missing, PairSampler
from dive_fast.types import DiveError, InputError, Sample, from_dict, to_dict

WEIGHTS, RECORD, STATE, LOG = "model.safetensors", "reid.json", "state.pt", "log.jsonl"


@dataclass(frozen=True)
class ReidConfig:
    """A training recipe; the default is tuned for the pocket world (128x64 images, about 200 people, one CPU thread).

    A batch is `identities` x (`per_modality` visible + as many infrared); `missing` and `synthetic_share` as in
    `PairSampler`. The run lasts `steps`, or `epochs` (AGW's count: one sees as many images as the larger modality has)
    when `steps` is None. The rate `lr` rises linearly over the first `warmup` of the run and then falls as a "cosine" to
    0, or tenfold at each of the `drops` ("step"; all fractions of the run); `backbone_lr` scales it for stems and trunk.
    Loss: cross entropy with label `smoothing` plus the "weighted" or "hard" triplet (`margin` is for "hard").
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    identities: int = 8
    per_modality: int = 3
    missing: Missing = "refuse"
    synthetic_share: float | None = None
    steps: int | None = 500
    epochs: int | None = None
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 2e-3
    backbone_lr: float = 1.0
    weight_decay: float = 5e-4
    warmup: float = 0.1
    schedule: Literal["cosine", "step"] = "cosine"
    drops: tuple[float, ...] = (0.33, 0.83)
    triplet: Literal["weighted", "hard"] = "weighted"
    margin: float = 0.3
    smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise InputError(f"give either steps or epochs, got steps {self.steps} and epochs {self.epochs}")
        if (self.steps or self.epochs or 0) < 1:
            raise InputError("steps or epochs must be at least 1")
        for name, values in (
            ("optimizer", ("adam", "sgd")),
            ("schedule", ("cosine", "step")),
            ("triplet", ("weighted", "hard")),
        ):
            if getattr(self, name) not in values:
                raise InputError(f"{name} must be one of {values}, got {getattr(self, name)!r}")
        if not (self.lr > 0 and 0 <= self.warmup < 1 and 0 <= self.smoothing < 1):
            raise InputError(f"lr must be above 0, warmup and smoothing within 0..1, got {self.lr}, {self.warmup}, "
                             f"{self.smoothing}")  # fmt: skip


def config_from_dict(data: Any, where: str) -> ReidConfig:
    """The config that `to_dict` made into JSON; unknown fields raise `InputError` naming `where`."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(data).__name__}")
    return from_dict(
        ReidConfig,
        {
            **data,
            "model": from_dict(ModelConfig, data.get("model", {}), where),
            "augment": from_dict(AugmentConfig, data.get("augment", {}), where),
            "drops": tuple(data.get("drops", ())),
        },
        where,
    )


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of what the images hold and how they are labelled, wherever the files lie."""
    try:
        rows = [[s.pid, s.camera, s.modality, s.source, sha256_file(s.path)] for s in samples]
    except OSError as error:
        raise InputError(f"image {error.filename} cannot be read ({error.strerror}); check the data folder") from error
    return sha256_bytes(canonical_json(rows).encode())


def train_reid(
    train: Sequence[Sample],
    config: ReidConfig,
    out: Path | str,
    *,
    device: str = "cpu",
    progress: bool = True,
    save_every: int = 200,
) -> Path:
    """Trains on `train` and returns `out`, which then holds `model.safetensors`, `reid.json` and `log.jsonl`.

    A run that was stopped goes on from its last save (every `save_every` steps) to the result that it would have had;
    a finished one is returned as it is. On one machine equal seeds give equal weights.
    Raises `InputError` for bad samples (see `load_images`, `PairSampler`) or an `out` of another run, and
    `DiveError` when the loss is no longer finite.
    """
    out = Path(out)
    run = {"config": to_dict(config), "data": fingerprint(train)}
    if (out / RECORD).exists():
        _refuse_other_run(read_json(out / RECORD, "checkpoint"), run, out)
        return out
    images = load_images(train, config.model.height, config.model.width, progress="train images" if progress else None)
    return fit(images, config, out, run=run, device=device, progress=progress, save_every=save_every)


def fit(
    images: ImageSet,
    config: ReidConfig,
    out: Path,
    *,
    run: dict[str, Any],
    device: str = "cpu",
    progress: bool = True,
    save_every: int = 200,
) -> Path:
    """`train_reid` on images that are in memory already; `run` is what a resumed run must share."""
    sampler = PairSampler(
        images.labels.numpy(),
        images.infrared.numpy(),
        identities=config.identities,
        per_modality=config.per_modality,
        seed=config.seed,
        missing=config.missing,
        synthetic=images.synthetic.numpy(),
        synthetic_share=config.synthetic_share,
        names=images.pids,
    )
    if sampler.dropped and progress:
        print(f"left out {len(sampler.dropped)} identities that lack a modality: {', '.join(sampler.dropped[:10])} ...")
    total = config.steps or sampler.steps_per_epoch * (config.epochs or 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = ReidModel(config.model, len(images.pids)).to(device)
    optimizer = _optimizer(model, config)
    first, rows = _resume(out, model, optimizer, run)

    model.train()
    bar = tqdm(range(first, total), initial=first, total=total, desc="reid", unit="step", disable=not progress)
    for step in bar:
        scale = learning_rate(step, total, config)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * scale
        rows.append(
            {"step": step + 1, "lr": config.lr * scale, **_step(model, optimizer, images, sampler, step, config)}
        )
        bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", accuracy=f"{rows[-1]['accuracy']:.2f}")
        if (step + 1) % save_every == 0 and step + 1 < total:
            _save(out, model, optimizer, step + 1, rows, run)
    _finish(out, model, images, sampler, total, rows, run)
    return out


def learning_rate(step: int, total: int, config: ReidConfig) -> float:
    """The factor on `lr` at `step` (from 0) of `total`."""
    warmup = config.warmup * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return math.prod(0.1 for drop in config.drops if step >= drop * total)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))


def _step(
    model: ReidModel,
    optimizer: torch.optim.Optimizer,
    images: ImageSet,
    sampler: PairSampler,
    step: int,
    config: ReidConfig,
) -> dict[str, float]:
    device = next(model.parameters()).device
    rows = torch.from_numpy(sampler.batch(step))
    infrared, labels = images.infrared[rows].to(device), images.labels[rows].to(device)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    batch = augment(images.images[rows].to(device), infrared, config.augment, generator)
    features, logits = model(batch, infrared)
    entropy = cross_entropy(logits, labels, config.smoothing)
    triplet = _triplet(features, labels, config)
    loss = entropy + triplet
    values = {"loss": loss.item(), "cross_entropy": entropy.item(), "triplet": triplet.item()}
    if not math.isfinite(values["loss"]):
        raise DiveError(f"the loss is {values['loss']} at step {step + 1} (cross entropy {values['cross_entropy']}, "
                        f"triplet {values['triplet']}); lower lr (now {config.lr})")  # fmt: skip
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {**values, "accuracy": (logits.argmax(1) == labels).float().mean().item()}


def _triplet(features: Tensor, labels: Tensor, config: ReidConfig) -> Tensor:
    if config.triplet == "hard":
        return batch_hard_triplet(features, labels, config.margin)
    return weighted_triplet(features, labels)


def _optimizer(model: ReidModel, config: ReidConfig) -> torch.optim.Optimizer:
    """Norms, biases and pooling exponents are not decayed; stems and trunk learn at `backbone_lr`."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = config.backbone_lr if name.split(".")[0] in ("visible", "infrared", "trunk") else 1.0
            key = (config.lr * scale, config.weight_decay if parameter.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(parameter)
    listed = [{"params": p, "base": lr, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(listed, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(listed)


def _save(
    out: Path,
    model: ReidModel,
    optimizer: torch.optim.Optimizer,
    step: int,
    rows: list[dict[str, float]],
    run: dict[str, Any],
) -> None:
    write_jsonl(out / LOG, rows)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "run": canonical_json(run)}
    with atomic_path(out / STATE) as path:
        torch.save(state, path)


def _resume(
    out: Path, model: ReidModel, optimizer: torch.optim.Optimizer, run: dict[str, Any]
) -> tuple[int, list[dict[str, float]]]:
    """Loads the last save into `model` and `optimizer`; returns the next step and the log up to it."""
    if not (out / STATE).exists():
        return 0, []
    try:
        state = torch.load(out / STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{out / STATE} is damaged ({type(error).__name__}); delete it to train afresh") from error
    if state["run"] != canonical_json(run):
        raise InputError(f"{out} holds a run with another config or other images; choose another out or delete it")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    rows = [row for row in read_jsonl(out / LOG, "training log") if row["step"] <= state["step"]]
    return state["step"], rows


def _finish(
    out: Path,
    model: ReidModel,
    images: ImageSet,
    sampler: PairSampler,
    steps: int,
    rows: list[dict[str, float]],
    run: dict[str, Any],
) -> None:
    write_jsonl(out / LOG, rows)
    with atomic_path(out / WEIGHTS) as path:
        save_file({k: v.cpu().contiguous() for k, v in model.state_dict().items()}, path)
    record = {
        **run,
        "pids": list(images.pids),
        "images": len(images),
        "infrared": int(images.infrared.sum()),
        "synthetic": int(images.synthetic.sum()),
        "dropped": list(sampler.dropped),
        "steps": steps,
        "loss": rows[-1]["loss"],
        "sha256": sha256_file(out / WEIGHTS),
    }
    write_json(out / RECORD, record)  # last: a folder with a record is a finished run
    (out / STATE).unlink(missing_ok=True)


def _refuse_other_run(record: dict[str, Any], run: dict[str, Any], out: Path) -> None:
    if canonical_json({key: record.get(key) for key in run}) != canonical_json(run):
        raise InputError(f"{out} holds a run with another config or other images; choose another out or delete it")


def load_model(checkpoint: Path | str, device: str = "cpu") -> tuple[ReidModel, ReidConfig, dict[str, Any]]:
    """The trained model in evaluation mode, its config, and `reid.json`; a damaged checkpoint raises `InputError`."""
    checkpoint = Path(checkpoint)
    record = read_json(checkpoint / RECORD, "reid checkpoint")
    where = str(checkpoint / RECORD)
    if not isinstance(record, dict) or not {"config", "pids", "sha256"} <= set(record):
        raise InputError(f"{where}: config, pids or sha256 is missing; train again")
    config = config_from_dict(record["config"], where)
    weights = checkpoint / WEIGHTS
    if not weights.is_file() or sha256_file(weights) != record["sha256"]:
        raise InputError(f"{weights} is missing or not the file that {RECORD} describes; train again")
    model = ReidModel(config.model, len(record["pids"]))
    model.load_state_dict(load_file(weights))
    return model.eval().to(device), config, record
