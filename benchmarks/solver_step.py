"""How long one guided solver step takes: `python -m benchmarks.solver_step [--device cuda]` (make bench, make gpu-bench).

Each implementation is checked against float64 first, then timed; the bytes are those that it cannot avoid moving.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dive_kernels.solver_step import StepCoefficients, solver_step, why_not_fused

STEP = StepCoefficients(guidance=7.5, alpha=0.61, sigma=0.79, keep=0.83, add=0.27, history=-0.11)
# Latents of 72 images of Stable Diffusion at 512x256, and of 32 of the pocket model.
SHAPES = {"sd15 72x4x64x32": (72, 4, 64, 32), "pocket 32x16x16x8": (32, 16, 16, 8)}
TENSORS = 6  # four read, two written


def milliseconds(run: Callable[[], object], device: str, repeats: int) -> list[float]:
    """Wall time of each of `repeats` calls, after a warm-up; on a GPU by events, so that launches overlap as in use."""
    for _ in range(10):
        run()
    if device == "cuda":
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for begin, end in events:
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in events]
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def worst_error(tensors: list[Tensor], impl: str) -> float:
    """Largest absolute difference from float64."""
    exact = solver_step(*[tensor.double() for tensor in tensors], STEP, impl="reference")
    got = solver_step(*tensors, STEP, impl=impl)
    return max((a.double() - b).abs().max().item() for a, b in zip(got, exact, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"solver_step, float32, {name}, torch {torch.__version__}, {options.repeats} calls")
    print(f"{'shape':<20} {'impl':<10} {'p10 ms':>9} {'median ms':>10} {'p90 ms':>9} {'GB/s':>8} {'error':>9}")
    for label, shape in SHAPES.items():
        tensors = [torch.randn(shape, device=options.device) for _ in range(4)]
        reasons = why_not_fused(*tensors)
        for impl in ("reference",) if reasons else ("reference", "fused"):
            error = worst_error(tensors, impl)
            times = milliseconds(lambda: solver_step(*tensors, STEP, impl=impl), options.device, options.repeats)  # noqa: B023
            deciles, middle = statistics.quantiles(times, n=10), statistics.median(times)
            rate = TENSORS * tensors[0].nbytes / middle / 1e6
            print(
                f"{label:<20} {impl:<10} {deciles[0]:>9.4f} {middle:>10.4f} {deciles[-1]:>9.4f} {rate:>8.1f} {error:>9.1e}"
            )
        if reasons:
            print(f"{label:<20} fused      not run: {reasons[0]}")


if __name__ == "__main__":
    main()
