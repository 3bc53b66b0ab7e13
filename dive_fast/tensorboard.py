"""Training scalars for TensorBoard, beside the logs that trainings keep themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dive_fast.types import DiveError


def require_tensorboard() -> None:
    """Raises `DiveError` with the extra to install; call it before training that logs to TensorBoard."""
    if importlib.util.find_spec("tensorboard") is None:
        raise DiveError("a TensorBoard log needs tensorboard; pip install 'dive-fast[tensorboard]'")


class TensorBoardLog:
    """Scalars by step in the TensorBoard folder `path`; on resume, those from the resumed step on are hidden there."""

    def __init__(self, path: Path, resume_step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(path), purge_step=resume_step)

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that no kill takes away what the state knows
