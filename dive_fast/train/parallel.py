"""Data-parallel training under `torchrun` or `accelerate launch`: every rank takes its rows of each batch, and gradients
are averaged.

A batch is the same whatever the number of ranks and of parts that a rank works through in turn, so a run on two cards
(or with two processes on two cores, which small models use better than two threads) gives one process's numbers to
rounding.

`accelerate launch` starts ranks as `torchrun` does, and what it was told is held against the run's own settings. Of
accelerate's `Accelerator` nothing is used. It shares out data by wrapping a loader, so that batches depend on the number
of processes, where ours are a function of the step. It averages gradients by wrapping the forward of one module, where
ours lie in two, one of them run twice a step. It saves a state as several files, which a kill can tear. And it is
global: a process has one precision for good. What is left, autocast and loss scaling, is torch's (`precision`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from dive_fast.distributed import rank_and_size
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

_part: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 1))


@contextmanager
def part_of_batch(part: int, parts: int) -> Iterator[None]:
    """Within the block, this rank's rows of a batch are those of part number `part` of its `parts`."""
    token = _part.set((part, parts))
    try:
        yield
    finally:
        _part.reset(token)


def my_rows(batch: int) -> slice:
    """Which rows of a batch this rank computes now; a batch that cannot be shared evenly raises `InputError`."""
    rank, size = rank_and_size()
    part, parts = _part.get()
    if batch % (size * parts):
        by = f"{size} processes" if parts == 1 else f"{size} processes in {parts} parts each"
        raise InputError(f"a batch of {batch} cannot be shared evenly by {by}; choose a multiple of {size * parts}")
    each = batch // (size * parts)
    first = (rank * parts + part) * each
    return slice(first, first + each)


def average_gradients(parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Averages gradients over the ranks in place, a missing one counting as zero, and returns the averaged loss."""
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
