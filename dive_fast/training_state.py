"""States from which a training resumes: files of tensors and plain values, read without running code and checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import brief
from dive_fast.types import DiveError, InputError

if TYPE_CHECKING:
    import torch


def read_state(path: Path) -> dict[str, Any]:
    """Returns what `torch.save` wrote; what holds anything else, or is no file, raises `InputError`."""
    import torch

    with damaged_state(path):
        if not path.is_file():
            raise ValueError("it is no file")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise ValueError("it holds no named values")
    return state


@contextmanager
def damaged_state(path: Path) -> Iterator[None]:
    """Raises `InputError` for whatever goes wrong in a block that takes over the state in the file `path`."""
    try:
        yield
    except DiveError:
        raise
    except Exception as error:  # torch raises many kinds for values of other types and shapes
        raise InputError(
            f"training state {path} is damaged ({brief(error, 80) or type(error).__name__}); delete it to begin again"
        ) from error


def step_of(state: dict[str, Any], steps: int) -> int:
    """The number of steps that a state has done, of `steps`; raises `ValueError` for another value."""
    step = state["step"]
    if type(step) is not int or not 0 <= step <= steps:
        raise ValueError("its step is none of this training")
    return step


def copy_tensors(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Copies `values` into `targets`; raises an error of any kind unless they are as many, of the same shapes."""
    import torch

    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            if value.shape != target.shape or not value.is_floating_point():
                raise ValueError(
                    f"a tensor is {value.dtype} of shape {list(value.shape)}, expected {list(target.shape)}"
                )
            target.copy_(value)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores AdamW or SGD; raises an error of any kind for other settings, but for rates, and for tensors that do not fit.

    A parameter has either everything that the optimizer keeps of one, or nothing.
    """
    import torch

    before = _settings(optimizer)
    optimizer.load_state_dict(state)
    if _settings(optimizer) != before:
        raise ValueError("its optimizer has other settings")
    kept = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
    for parameter, held in optimizer.state.items():
        shapes = dict.fromkeys(kept, parameter.shape) | ({"step": torch.Size()} if "step" in kept else {})
        if {name: value.shape for name, value in held.items()} != shapes:
            raise ValueError("its optimizer holds tensors of other names or shapes")


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The settings of each group; learning rates change by the step, and a training sets them anew."""
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
