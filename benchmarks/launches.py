"""What the launches of one UNet call cost the host, without a GPU: `python -m benchmarks.launches --out FILE`.

The ops of a UNet of Stable Diffusion 1.5's size with all of our kernels, at two rows (the host's work does not depend on
rows), started by cuda-python on a driver that does nothing (`tests/support/driver_double.py`). Milliseconds of CPU time of
this thread, least and median. Not in it: the driver's own work, torch's current stream, layers that are not ours.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.machine import metadata, options_of, write
from tests.support.driver_double import driver_double

PROMPTS, KEYS, BANK_CHANNELS = 17, 77, 12_480
Call = Callable[[], Any]


class Ops(TorchDispatchMode):
    """Collects the calls of our ops and their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "dive":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def unet_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    """The ops of one call at two rows; tensors are on the device "meta"."""
    from dive_fast.bench.sd15 import sd15
    from dive_fast.unet.graphs import CachedUnetGraph
    from dive_fast.unet.kernels import use_kernels

    bundle = sd15(real=())
    with torch.device("meta"), torch.no_grad():
        graph = CachedUnetGraph(bundle.unet.half(), ("shared_prefix", "unit_scale", "fused_qkv"), 1000)
        use_kernels(graph, impl="reference")
        index = torch.empty(2, dtype=torch.int64)
        latent, bank = torch.empty(1, 4, 64, 32).half(), torch.empty(PROMPTS, 2, KEYS, BANK_CHANNELS).half()
        with Ops() as ops:
            graph(latent, index[:1], bank, index, index)
    return ops.calls


def on_cpu(x: Any) -> Any:
    """A tensor's like on the CPU, images channels last; the kernel where the reference ran."""
    if isinstance(x, Tensor):
        like = torch.zeros(x.untyped_storage().nbytes(), dtype=torch.uint8).view(x.dtype)
        like = like.as_strided(x.shape, x.stride(), x.storage_offset())
        return like.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else like
    return "fused" if x == "reference" else x


def measure(repeats: int) -> dict[str, Any]:
    """Claims a GPU for tensors of the CPU, and times the ops one after another."""
    from dive_kernels import run
    from dive_kernels.launch import Launch
    from dive_kernels.package import Code

    calls = [(op, [on_cpu(x) for x in args]) for op, args in unet_calls()]
    code = Code("kernel", b"\x7fELF and no more", shared_bytes=4096, null_pointers=2)
    started = []
    Launch.device = property(lambda _: torch.device("cuda"))  # type: ignore[assignment, method-assign]
    run._code = lambda launch: started.append(launch) or code  # type: ignore[func-returns-value]
    torch.cuda.current_device = lambda: None  # type: ignore[assignment, return-value]
    torch.cuda.current_stream = lambda _: SimpleNamespace(cuda_stream=0x77)  # type: ignore[assignment, return-value]
    times = []
    with torch.inference_mode():
        for _ in range(repeats):
            begin = time.thread_time()
            for op, arguments in calls:
                op(*arguments)
            times.append(1e3 * (time.thread_time() - begin))
    found = {"first ms": times[0], "least ms": min(times[1:]), "median ms": statistics.median(times[1:])}
    return {"ops": len(calls), "planned launches": len(started)} | {name: round(ms, 2) for name, ms in found.items()}


def main() -> None:
    options = options_of(__doc__, repeats=100).parse_args()
    if "DIVE_DRIVER_DOUBLE" not in os.environ:
        with TemporaryDirectory() as folder:
            libraries = {"LD_LIBRARY_PATH": str(driver_double(Path(folder)).parent), "DIVE_DRIVER_DOUBLE": "1"}
            environment = {**os.environ, **libraries, "TRITON_INTERPRET": "1"}  # kernels take tensors of a CPU
            command = [sys.executable, "-m", "benchmarks.launches", *sys.argv[1:]]
            sys.exit(subprocess.run(command, env=environment, check=False).returncode)
    result = metadata(("torch", "cuda-python"), repeats=options.repeats) | measure(options.repeats)
    print(result)
    write(options.out, result)


if __name__ == "__main__":
    main()
