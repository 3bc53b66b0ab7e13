"""Data-parallel training under `torchrun`: every rank takes its rows of each batch, and gradients are averaged.

A batch is the same whatever the number of ranks, so a run on two cards (or with two processes on two cores, which
small models use better than two threads) gives one process's numbers to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Joins the ranks that `torchrun` started (its WORLD_SIZE says so), for the time of the block; else does nothing.

    `device` is "cpu", or "cuda" for one GPU a rank.
    """
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    import torch

    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """This process's number and how many there are; (0, 1) outside a process group."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def leading() -> bool:
    """Whether this process does what only one may do: write, print."""
    return rank_and_size()[0] == 0


def my_rows(batch: int) -> slice:
    """Which rows of a batch this rank computes; a batch that the ranks cannot share evenly raises `InputError`."""
    rank, size = rank_and_size()
    if batch % size:
        raise InputError(f"a batch of {batch} cannot be shared evenly by {size} processes; choose a multiple of {size}")
    each = batch // size
    return slice(rank * each, (rank + 1) * each)


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


@contextmanager
def first_rank_first() -> Iterator[None]:
    """The first rank runs the block before the others: it makes a file, they find it made."""
    import torch.distributed as dist

    rank, size = rank_and_size()
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and size > 1:
        dist.barrier()
