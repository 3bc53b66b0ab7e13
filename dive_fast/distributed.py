"""Process groups of trainings that `torchrun` or `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dive_fast.types import InputError

# Set by `accelerate launch` for modes that only its own library implements.
_FOREIGN = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "other parallelism",
}


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Joins the process group of a launcher (WORLD_SIZE > 1) for the block; does nothing without one.

    `device` is "cpu", or "cuda" for one GPU per rank.
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


def check_device(device: str) -> None:
    """Raises `InputError` for a GPU where torch sees none."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(
            f"--device {device}: torch {torch.__version__} sees no GPU; dive-fast doctor says what is missing"
        )


def rank_and_size() -> tuple[int, int]:
    """Returns rank and world size; (0, 1) outside a process group."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def leading() -> bool:
    """Returns whether this is rank 0, which alone writes and prints."""
    return rank_and_size()[0] == 0


def check_launcher(precision: str, option: str = "--mixed-precision") -> None:
    """Raises `InputError` when `accelerate launch` was started for a mode or precision other than this run's.

    `precision` is "no", "bf16" or "fp16", and `option` the option that sets it.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        raise InputError(
            f"accelerate launch has mixed precision {launched}, this run {precision}; add {option} {launched}"
        )
    unsupported = [what for name, what in _FOREIGN.items() if os.environ.get(name, "false").lower() == "true"]
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    unsupported += [] if compiler.upper() == "NO" else [f"the compiler {compiler}"]
    if unsupported:
        raise InputError(
            f"accelerate launch asks for {', '.join(unsupported)}, which this training does not support: start it with"
            " --multi_gpu alone"
        )


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Runs the block on rank 0 before the other ranks, which then find its files."""
    import torch.distributed as dist

    rank, size = rank_and_size()
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and size > 1:
        dist.barrier()
