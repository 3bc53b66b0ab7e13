"""Data-parallel training under `torchrun` or `accelerate launch`: each rank computes its rows of a batch.

Batches do not depend on the numbers of ranks and parts, so all of them give one process's results to rounding.

accelerate's `Accelerator` does not fit: its batches depend on the number of processes, it averages the gradients of one
module (ours are in two, one of them called twice a step), and it saves a state as several files, which a kill can tear.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from dive_fast.distributed import rank_and_size
from dive_fast.types import InputError
from dive_fast.words import count

if TYPE_CHECKING:
    import torch

_part: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


@contextmanager
def part_of_batch(part: int, parts: int) -> Iterator[None]:
    """Limits this rank's rows of a batch to part number `part` of its `parts` for the block."""
    token = _part.set((part, parts))
    try:
        yield
    finally:
        _part.reset(token)


def my_rows(batch: int) -> slice:
    """Returns the rows of a batch that this rank computes now; a batch that does not divide evenly raises `InputError`."""
    rank, size = rank_and_size()
    part, parts = _part.get()
    if batch % (size * parts):
        by = count(size, "process") + ("" if parts == 1 else f" in {parts} parts each")
        raise InputError(f"a batch of {batch} cannot be divided evenly among {by}; choose a multiple of {size * parts}")
    each = batch // (size * parts)
    first = (rank * parts + part) * each
    return slice(first, first + each)


def average_gradients(parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Averages gradients over the ranks in place (a missing one is zero) and returns the averaged loss."""
    import torch
    import torch.distributed as dist

    _, size = rank_and_size()
    if size == 1:
        return loss.detach()
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([loss.detach().view(1), *(g.view(-1) for g in gradients)])
    dist.all_reduce(flat)
    flat /= size
    offset = 1
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
    return flat[0]
