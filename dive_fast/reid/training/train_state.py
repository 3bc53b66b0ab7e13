"""The state of a training, and one step of it: forward, loss, checks, gradients, optimizer."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dive_fast.reid.data.batches import Batch
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training import losses
from dive_fast.reid.training.config import ReidConfig
from dive_fast.reid.training.parallel import gathered, share_norms, sum_gradients
from dive_fast.training_state import load_optimizer
from dive_fast.types import DiveError, InputError

MOST_SKIPPED = 20  # in a row; each halves the scale, which then falls from 65,536 below 0.1: no gradient is that large
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainState:
    """A model, its optimizer and, at fp16, the scale of its loss.

    `skipped` counts the consecutive steps whose gradient left the range of fp16; those change nothing but the scale.
    """

    def __init__(self, config: ReidConfig, classes: int, device: str):
        self.config, self.device = config, torch.device(device)
        bf16_on_gpu = config.precision == "bf16" and self.device.type == "cuda"
        if bf16_on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise InputError(f"precision bf16: {torch.cuda.get_device_name()} lacks it; choose fp16")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = ReidModel(config.model, classes).to(device)
        share_norms(self.model)
        for name, parameter in self.model.named_parameters():
            if name.endswith(".exponent"):
                parameter.requires_grad_(config.gem_learns)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = _optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type) if config.precision == "fp16" else None
        self.skipped = 0

    def step(self, batch: Batch, scale: float, number: int) -> dict[str, float]:
        """Trains on a batch with `scale` times the learning rates; `number` is the step's, for messages.

        Returns the losses, the fraction of right answers, and the gradient's norm before clipping. Raises `DiveError` for a
        loss that is not finite, or a gradient, at fp16 after `MOST_SKIPPED` such steps in a row.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * scale
        pixels = batch.pixels(self.config, self.device)
        with self._autocast():
            features, logits = self.model(pixels, batch.infrared.to(self.device))
        features, logits = gathered(features.float()), gathered(logits.float())
        labels = gathered(batch.labels.to(self.device))
        entropy = F.cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
        triplet = self._triplet(features, labels)
        loss = entropy + triplet
        right = (logits.argmax(1) == labels).float().mean()
        names = ("loss", "cross_entropy", "triplet", "accuracy")
        values = dict(zip(names, torch.stack([loss, entropy, triplet, right]).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            parts = f"cross entropy {values['cross_entropy']}, triplet {values['triplet']}"
            raise DiveError(f"the loss is {values['loss']} at step {number} ({parts}); {self._remedy()}")
        self.optimizer.zero_grad()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return {**values, **self._update(number, values["loss"])}

    def _triplet(self, features: Tensor, labels: Tensor) -> Tensor:
        if self.config.triplet == "hard":
            return losses.batch_hard_triplet(features, labels, self.config.margin)
        squared = self.config.triplet == "squared"
        return (losses.squared_difference_triplet if squared else losses.weighted_triplet)(features, labels)

    def _update(self, number: int, loss: float) -> dict[str, float]:
        """Steps the optimizer if the gradient is finite; returns its norm, at fp16 also the scale and the steps skipped."""
        sum_gradients(self.parameters)
        scale = None if self.scaler is None else self.scaler.get_scale()
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if self.skipped and (self.scaler is None or self.skipped >= MOST_SKIPPED):
            repeated = "" if scale is None else f", for {self.skipped} steps in a row, at a loss scale of {scale:g}"
            where = f"at step {number} (loss {loss:g}){repeated}"
            raise DiveError(f"the gradient's norm is {norm} {where}; {self._remedy()}")
        if self.config.clip is not None and not self.skipped:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, torch.tensor(norm))
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # skips the step if the gradient is not finite, on every rank alike
            self.scaler.update()
        values = {} if self.skipped else {"gradient_norm": norm}
        return values if scale is None else {**values, "scale": scale, "skipped": self.skipped}

    def _autocast(self) -> AbstractContextManager[object]:
        dtype = _HALF.get(self.config.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _remedy(self) -> str:
        lower = f"lower lr (now {self.config.lr}) or clip the gradient (clip is {self.config.clip})"
        return lower if self.config.precision == "fp32" else f"{lower}, or train in fp32 (now {self.config.precision})"

    def state(self) -> dict[str, Any]:
        """Returns what `restore` continues from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from `state`; raises an error of any kind for one of another training."""
        self.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = int(state["skipped"])


def _optimizer(model: ReidModel, config: ReidConfig) -> torch.optim.Optimizer:
    """Norms, biases and pooling exponents decay only with `decay_all`; stems and trunk learn at `backbone_lr`."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = config.backbone_lr if name.split(".")[0] in ("visible", "infrared", "trunk") else 1.0
            decayed = config.decay_all or parameter.ndim > 1
            key = (config.lr * scale, config.weight_decay if decayed else 0.0)
            groups.setdefault(key, []).append(parameter)
    listed = [{"params": p, "base": lr, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    if config.optimizer == "sgd":
        return torch.optim.SGD(listed, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(listed)
