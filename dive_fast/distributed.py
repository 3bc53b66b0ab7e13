"""The processes that `torchrun` or `accelerate launch` started for one training: who there is, and what they agree on.

Of accelerate's `Accelerator` nothing is used (`dive_fast.train.parallel` says why); what its launcher was told is held
against the run's own settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dive_fast.types import InputError

# What `accelerate launch` sets for ways to train that only its own library carries out.
_FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "other parallelism",
}


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Joins the ranks that a launcher started (WORLD_SIZE says so), for the time of the block; else does nothing.

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


def check_launcher(precision: str, option: str = "--mixed-precision") -> None:
    """Raises `InputError` where `accelerate launch` was told what a run of this mixed `precision` would not do.

    `precision` is "no", "bf16" or "fp16"; `option` is how the run is told.
    """
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", precision):
        raise InputError(
            f"accelerate launch says mixed precision {told}, the run {precision}; give {option} {told} too"
        )
    foreign = [what for name, what in _FOREIGN.items() if os.environ.get(name, "false").lower() == "true"]
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    foreign += [] if compiler.upper() == "NO" else [f"the compiler {compiler}"]
    if foreign:
        raise InputError(
            f"accelerate launch asks for {', '.join(foreign)}; this training shares batches between processes and no more:"
            " start it with --multi_gpu alone"
        )


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
