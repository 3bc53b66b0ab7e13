"""Training scalars for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from dive_fast.environment.optional import optional


def require_tensorboard() -> None:
    """Raises `DiveError` that names the extra to install, if TensorBoard is missing."""
    optional("tensorboard", "a TensorBoard log")


class TensorBoardLog:
    """Writes scalars by step to the TensorBoard folder `path`; on resume, hides those from the resumed step on."""

    def __init__(self, path: Path, resume_step: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(path), purge_step=resume_step)

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # a kill then loses none
