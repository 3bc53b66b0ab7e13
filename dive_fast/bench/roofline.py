"""What this machine reaches at best: its measured peaks, against which engines are held."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from dive_fast.bench.timing import interleaved, quantiles

GEMMS = {  # rows, inner, columns; square, and tall as convolutions and projections of a batch are
    "cpu": ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 512, 512)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096), (65536, 2048, 2048)),
}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # beyond every cache
REPEATS = {"cpu": 9, "cuda": 30}
SECONDS = 20.0  # of all rounds; a product that alone takes longer is left out
FIRST = 128  # rows, inner and columns of a product that takes no time in any precision, by which others are estimated


@dataclass(frozen=True)
class Peaks:
    """TFLOP/s of the best matrix product and GB/s of a copy (what is read and what is written), both at the 5th percentile
    of time: a peak is what the machine can do, and others' load takes away from that only.

    `gemms` has the TFLOP/s of each product tried, by "rows x inner x columns".
    """

    tflops: float
    gbytes: float
    precision: str
    gemms: dict[str, float]

    def bound_ms(self, flops: float, moved: float) -> float:
        """Milliseconds that this work takes at the peaks, the slower of arithmetic and traffic."""
        return max(self.arithmetic_ms(flops), self.traffic_ms(moved))

    def arithmetic_ms(self, flops: float) -> float:
        return flops / self.tflops / 1e9

    def traffic_ms(self, moved: float) -> float:
        return moved / self.gbytes / 1e6


@torch.inference_mode()
def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Random operands in `dtype`, the products and the copy in rounds; takes a few seconds.

    A precision without fast kernels takes longer: rounds end after `SECONDS`, and products that need more are left out.
    """
    kind, generator = device.type, torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    first = partial(torch.mm, random(FIRST, FIRST), random(FIRST, FIRST))
    most = SECONDS * 2e3 * FIRST**3 / min(interleaved({"first": first}, 3, kind)["first"])  # FLOPs within the limit
    sizes = [size for size in GEMMS[kind] if 2 * math.prod(size) <= most] or [(FIRST, FIRST, FIRST)]
    operands = {"x".join(map(str, (m, k, n))): (random(m, k), random(k, n), 2 * m * k * n) for m, k, n in sizes}
    source = random(COPY_BYTES[kind] >> 12, (1 << 12) // dtype.itemsize)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], object]] = {name: partial(torch.mm, a, b) for name, (a, b, _) in operands.items()}
    runs["copy"] = partial(target.copy_, source)
    times = interleaved(runs, REPEATS[kind], kind, warm_up=1, seconds=SECONDS)
    least = {name: quantiles(values).p5 for name, values in times.items()}
    gemms = {name: flops / least[name] / 1e9 for name, (_, _, flops) in operands.items()}
    copied = 2 * source.nbytes / least["copy"] / 1e6
    return Peaks(max(gemms.values()), copied, str(dtype).removeprefix("torch."), gemms)
