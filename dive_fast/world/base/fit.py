"""The training loop of every network of the pocket base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.train.loop import Loss, PhaseConfig, batch_indices, run_phase
from dive_fast.train.parallel import my_rows
from dive_fast.world.base.config import FitConfig

if TYPE_CHECKING:
    import torch

RECORD = "training.json"  # what a trained network notes of its training, in its folder

LossOn = Callable[[np.ndarray, slice, "torch.Generator"], Loss]
"""Loss and numbers to log of a batch: its indices int64 [B], this process's rows of them, and a generator for noise."""


def fit(
    name: str,
    networks: Sequence[torch.nn.Module],
    count: int,
    loss_on: LossOn,
    config: FitConfig,
    work: Path,
    device: str = "cpu",
    weight_decay: float = 0.0,
    **phase: Any,
) -> None:
    """Trains `networks` on `device` over `count` examples as phase `name` in `work`; then freezes them on the CPU.

    Resumes from `work`. `phase` are further settings of `PhaseConfig`.
    """
    import torch

    for network in networks:
        network.requires_grad_(True).train().to(device)

    def loss_at(step: int) -> Loss:
        rows = batch_indices(count, config.batch, step, config.seed)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        return loss_on(rows, my_rows(config.batch), generator)

    parameters = [parameter for network in networks for parameter in network.parameters()]
    run_phase(
        PhaseConfig(
            name, work, config.steps, config.lr, config.warmup, config.save_every, precision=config.precision, **phase
        ),
        [{"params": parameters, "weight_decay": weight_decay}],
        loss_at,
    )
    for network in networks:
        network.cpu().eval().requires_grad_(False)
