"""Training of a cross-modality embedding: samples in, a checkpoint folder out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dive_fast.reid import checkpoint
from dive_fast.reid.config import ReidConfig, learning_rate
from dive_fast.reid.dataset import ImageSet, augment, fingerprint, load_images
from dive_fast.reid.losses import batch_hard_triplet, cross_entropy, weighted_triplet
from dive_fast.reid.model import ReidModel
from dive_fast.reid.sampler import PairSampler
from dive_fast.types import DiveError, Sample, to_dict

__all__ = ["ReidConfig", "fit", "train_reid"]


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
    if checkpoint.finished(out, run):
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
    on_step: Callable[[], None] | None = None,
    added: Sequence[str] | None = None,
) -> Path:
    """`train_reid` on images that are in memory already; `run` is what a resumed run must share.

    `added` names the identities whom `config.synthetic_share` is for; by default those that have a synthetic image.
    """
    counted = images.synthetic.numpy()
    if added is not None:
        counted = np.isin(np.array(images.pids)[images.labels.numpy()], list(added))
    sampler = PairSampler(
        images.labels.numpy(),
        images.infrared.numpy(),
        identities=config.identities,
        per_modality=config.per_modality,
        seed=config.seed,
        missing=config.missing,
        synthetic=counted,
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
    first, rows = checkpoint.resume(out, model, optimizer, run)

    model.train()
    bar = tqdm(range(first, total), initial=first, total=total, desc="reid", unit="step", disable=not progress)
    for step in bar:
        scale = learning_rate(step, total, config)
        for group in optimizer.param_groups:
            group["lr"] = group["base"] * scale
        rows.append(
            {"step": step + 1, "lr": config.lr * scale, **_step(model, optimizer, images, sampler, step, config)}
        )
        if on_step is not None:
            on_step()
        bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", accuracy=f"{rows[-1]['accuracy']:.2f}")
        if (step + 1) % save_every == 0 and step + 1 < total:
            checkpoint.save(out, model, optimizer, step + 1, rows, run)
    checkpoint.finish(out, model, images, sampler, total, rows, run)
    return out


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
