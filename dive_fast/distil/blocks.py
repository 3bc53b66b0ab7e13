"""What a teacher computes once and a training reads often, in files of a few rows: kill-safe, made by all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.distributed import first_rank_first, rank_and_size
from dive_fast.io import atomic_path
from dive_fast.models.files import check_safetensors, write_tensors
from dive_fast.progress import ProgressBar
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

BLOCK = 32  # rows of a file
_RUN = "dive_fast"

Row = tuple[int, ...]
"""The shape of a row of a tensor."""


def blocks_of(count: int) -> list[range]:
    """The rows of each block."""
    return [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def kept_blocks(
    work: Path,
    name: str,
    run: str,
    count: int,
    shapes: Mapping[str, Row],
    make: Callable[[Sequence[int]], Mapping[str, torch.Tensor]],
    progress: bool,
) -> dict[str, torch.Tensor]:
    """Returns the tensors that `make` gives for rows 0..count, joined; those that `work` has, as `name`-*, are read.

    `make` must depend on its rows alone, and returns tensors [rows, *shape] by the names of `shapes`. A block of another
    `run` raises `InputError`.
    """
    import torch

    rank, size = rank_and_size()
    blocks = blocks_of(count)
    paths = [work / f"{name}-{number:05d}.safetensors" for number in range(len(blocks))]
    mine = list(zip(paths, blocks, strict=True))[rank::size]
    for path, rows in ProgressBar(mine, desc=name, unit="block", disable=not progress):
        if not path.exists():
            with atomic_path(path) as temporary:
                write_tensors(temporary, make(rows), metadata={_RUN: run})
    with first_rank_first():  # all wait for all
        pass
    found = [_read(path, run, len(rows), shapes) for path, rows in zip(paths, blocks, strict=True)]
    return {key: torch.cat([part[key] for part in found]) for key in shapes}


def _read(path: Path, run: str, rows: int, shapes: Mapping[str, Row]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    check_safetensors(path)
    with safe_open(path, framework="pt") as file:
        ours = (file.metadata() or {}).get(_RUN) == run and set(file.keys()) == set(shapes)
        found = {key: file.get_tensor(key) for key in shapes} if ours else {}
    fits = found and all(found[key].shape == (rows, *shape) for key, shape in shapes.items())
    if not fits or not all(bool(tensor.isfinite().all()) for tensor in found.values()):
        raise InputError(f"{path} does not hold what this model and these settings make; delete it and rerun")
    return found
