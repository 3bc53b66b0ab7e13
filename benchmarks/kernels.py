"""The kernels op by op, on Stable Diffusion 1.5's shapes: `python -m benchmarks.kernels --out FILE` (make bench).

Each op against what a library offers for it: torch's SDPA by every backend, eager torch, inductor (torch.compile,
max-autotune). Every candidate is compared with float64 first, on the inputs that are timed; one that is further off than
twice plain torch is left out of the times and named. Candidates take turns, the GPU's cache is flushed before each call,
times are the GPU's own. The floor of a case is the longer of its unavoidable bytes and its operations, at this GPU's peaks
(`dive_fast.bench.roofline`), measured in the same run.

On a GPU `--table` takes the medians up into the table that `impl="auto"` reads. Without a GPU (`--device cpu`) the
script tries itself: small shapes, float32, no table, no floor; the kernels are Triton's and so left out.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import interleaved, metadata, options_of, write
from dive_fast.bench.roofline import Peaks, measure_peaks
from dive_kernels import table
from dive_kernels.attention import attention
from dive_kernels.cross_attention import cross_attention
from dive_kernels.geglu import geglu
from dive_kernels.groupnorm_silu import groupnorm_silu
from dive_kernels.image_epilogue import image_epilogue
from dive_kernels.run import capability, run
from dive_kernels.solver_step import StepCoefficients, solver_step

HEADS, KEYS, GROUPS = 8, 77, 32
ROWS_A_PROMPT = 18  # images of one prompt in DiVE's batches
STEP = StepCoefficients(guidance=7.5, alpha=0.61, sigma=0.79, keep=0.83, add=0.27, history=-0.11)
# Tokens, channels of Stable Diffusion 1.5's levels at 512 x 256 pixels; the last two have the same channels.
LEVELS = ((2048, 320), (512, 640), (128, 1280), (32, 1280))
SMALL = ((128, 320), (32, 640))  # for a CPU
# Channels of the UNet's norms, and of what a skip adds, by tokens of the level: resnets of the way up.
SKIPS = {2048: ((640, 320), (320, 320)), 512: ((1280, 640), (640, 640), (640, 320)), 128: ((1280, 1280), (1280, 640))}
DTYPES = ("float16", "bfloat16", "float32")
PACKAGES = ("torch", "triton", "cuda-python")
SDPA = ("sdpa", "cudnn", "flash", "efficient")

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One op at one size.

    `run` computes it by an implementation, `formula` in plain torch from `given`: in float64 it is the oracle, by inductor a
    candidate. `library` are implementations beside ours; the first one's error is the measure. `key` and `work` are the
    table's; `bytes` and `flops` cannot be avoided.
    """

    op: str
    what: str
    key: dict[str, int]
    work: int
    bytes: int
    flops: int
    run: Callable[[str], Any]
    library: tuple[str, ...]
    formula: Callable[..., Any]
    given: tuple[Tensor | None, ...]
    inductor: bool = True

    def exact(self) -> Tensor:
        return flat(self.formula(*(None if tensor is None else tensor.double() for tensor in self.given)))

    def candidates(self, device: str, inductor: bool) -> dict[str, Call]:
        """By name; the reference, which is slow and large, on a CPU alone."""
        names = ("fused", *([] if device == "cuda" else ["reference"]), *self.library)
        found: dict[str, Call] = {name: partial(self.run, name) for name in names}
        if inductor and self.inductor and device == "cuda":
            compiled = torch.compile(self.formula, dynamic=False, mode="max-autotune-no-cudagraphs")
            found["inductor"] = lambda: compiled(*self.given)
        return found


class Maker:
    """Random tensors of one type on one device, always the same ones."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(dtype or self.dtype)

    def images(self, *shape: int) -> Tensor:
        return self(*shape).contiguous(memory_format=torch.channels_last)


def cross_attentions(make: Maker, rows: int, tokens: int, channels: int) -> Iterator[Case]:
    """Queries of every row to the keys of its prompt: the empty one for half of the rows, as guidance has it."""
    images = max(1, rows // 2)
    own = torch.arange(images) // ROWS_A_PROMPT + 1
    index = torch.cat([torch.zeros_like(own), own])[:rows].to(make.device)
    prompts = int(index.max()) + 1
    query, bank = make(rows, tokens, channels), make(prompts, 2, KEYS, channels)
    key, value = bank[:, 0], bank[:, 1]
    yield Case(
        "cross_attention",
        f"{rows} rows, {tokens} tokens, head dim {channels // HEADS}, {KEYS} keys, {prompts} prompts",
        {"head_dim": channels // HEADS, "keys": KEYS},
        rows * tokens * channels,
        2 * query.nbytes + bank.nbytes,
        4 * rows * tokens * KEYS * channels,
        lambda impl: cross_attention(query, key, value, index, HEADS, impl=impl, validate=False),
        SDPA,
        lambda q, k, v: _attend(q, k[index], v[index]),
        (query, key, value),
    )


def attentions(make: Maker, rows: int, tokens: int, channels: int) -> Iterator[Case]:
    query, key, value = make(rows, tokens, 3 * channels).split(channels, -1)  # as a fused projection gives them
    yield Case(
        "attention",
        f"{rows} rows, {tokens} tokens, head dim {channels // HEADS}",
        {"head_dim": channels // HEADS},
        rows * HEADS * tokens * tokens,
        4 * query.nbytes,
        4 * rows * tokens * tokens * channels,
        lambda impl: attention(query, key, value, HEADS, impl=impl),
        SDPA,
        _attend,
        (query, key, value),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [R, T, C] to [R, S, C], a few rows at a time in float64, whose scores would not fit at once."""
    step = len(query) if query.dtype != torch.float64 else max(1, (1 << 27) // (query.shape[1] * key.shape[1] * HEADS))
    parts = [
        functional.scaled_dot_product_attention(*(x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in part))
        .transpose(1, 2)
        .flatten(2)
        for part in zip(query.split(step), key.split(step), value.split(step), strict=True)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def groupnorms(make: Maker, rows: int, tokens: int, channels: int) -> Iterator[Case]:
    """Of a resnet: the first norm, with and without a skip, the second with the time embedding, a transformer's."""
    width = int((tokens // 2) ** 0.5)
    size = (2 * width, width) if 2 * width * width == tokens else (tokens // 4, 4)
    for first, second in ((channels, 0), *SKIPS.get(tokens, ())):
        yield _groupnorm(make, rows, size, first, second, False, True)
    yield _groupnorm(make, rows, size, channels, 0, True, True)
    yield _groupnorm(make, rows, size, channels, 0, False, False)


def _groupnorm(
    make: Maker, rows: int, size: tuple[int, int], first: int, second: int, shifted: bool, silu: bool
) -> Case:
    x = make.images(rows, first, *size)
    skip = make.images(rows, second, *size) if second else None
    shift = make(1, first) if shifted else None
    weight, bias = make(first + second), make(first + second)
    eps = 1e-5 if silu else 1e-6

    def formula(x: Tensor, skip: Tensor | None, shift: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
        x = x if shift is None else x + shift[:, :, None, None]
        x = x if skip is None else torch.cat([x, skip], 1)
        x = functional.group_norm(x, GROUPS, weight, bias, eps)
        return functional.silu(x) if silu else x

    words = [f"{first}{f'+{second}' if second else ''} channels", *["time"] * shifted, *["SiLU"] * silu]
    return Case(
        "groupnorm_silu",
        f"{rows} rows, {size[0]}x{size[1]}, {', '.join(words)}",
        {"channels": first + second, "skip": second, "shift": int(shifted), "silu": int(silu)},
        rows * (first + second) * size[0] * size[1],
        2 * (x.nbytes + (0 if skip is None else skip.nbytes)),
        0,
        lambda impl: groupnorm_silu(x, weight, bias, GROUPS, eps, skip=skip, shift=shift, silu=silu, impl=impl),
        ("eager",),
        formula,
        (x, skip, shift, weight, bias),
    )


def geglus(make: Maker, rows: int, tokens: int, inner: int) -> Iterator[Case]:
    outer = 4 * inner
    x, bias = make(rows, tokens, inner), make(2 * outer)
    weight = make(2 * outer, inner) * inner**-0.5

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        hidden, gate = functional.linear(x, weight, bias).chunk(2, -1)
        return hidden * functional.gelu(gate)

    count = rows * tokens
    yield Case(
        "geglu",
        f"{rows} rows, {tokens} tokens, {inner} to {outer}",
        {"inner": inner, "outer": outer},
        count * outer,
        x.nbytes + weight.nbytes + count * outer * x.element_size(),
        4 * count * inner * outer,
        lambda impl: geglu(x, weight, bias, impl=impl),
        ("eager",),
        formula,
        (x, weight, bias),
    )


def solver_steps(make: Maker, rows: int, tokens: int, channels: int) -> Iterator[Case]:
    """Predictions in the engine's type, latents in float32."""
    shape = (max(1, rows // 2), 4, tokens // 32, 32)
    eps = [make(*shape) for _ in range(2)]
    latents = [make(*shape, dtype=torch.float32) for _ in range(2)]
    given = (*eps, *latents)
    yield Case(
        "solver_step",
        f"{shape[0]} latents of {'x'.join(map(str, shape[1:]))}",
        {},
        latents[0].numel(),
        sum(t.nbytes for t in given) + 2 * latents[0].nbytes,
        0,
        lambda impl: solver_step(*given, STEP, impl=impl),
        ("reference",),
        lambda *tensors: solver_step(*tensors, STEP, impl="reference"),
        given,
        inductor=False,
    )


def epilogues(make: Maker, rows: int, tokens: int, channels: int) -> Iterator[Case]:
    images = make.images(max(1, rows // 2), 3, tokens // 4, 256)
    yield Case(
        "image_epilogue",
        f"{len(images)} images of {images.shape[2]}x{images.shape[3]}",
        {},
        images.numel(),
        images.nbytes + images.numel(),
        0,
        lambda impl: image_epilogue(images, impl=impl),
        ("reference",),
        lambda x: (x * 0.5 + 0.5).clamp(0, 1).mul(255).permute(0, 2, 3, 1),
        (images,),
        inductor=False,
    )


OPS: dict[str, Callable[[Maker, int, int, int], Iterator[Case]]] = {
    "cross_attention": cross_attentions,
    "attention": attentions,
    "groupnorm_silu": groupnorms,
    "geglu": geglus,
    "solver_step": solver_steps,
    "image_epilogue": epilogues,
}
ONCE = ("solver_step", "image_epilogue")  # of these the first level alone


def cases(op: str, make: Maker, rows: int, levels: Sequence[tuple[int, int]]) -> Iterator[Case]:
    for level in levels[:1] if op in ONCE else levels:
        yield from OPS[op](make, rows, *level)


def in_tile(case: Case, tile: Sequence[int]) -> Case:
    """The case of an attention or a GEGLU with its kernel in that tile, whatever its plan has for this chip."""
    module = importlib.import_module(f"dive_kernels.{case.op}.plan")
    name, made, more = ("shape", tuple(tile), (HEADS,))
    if case.op == "geglu":
        name, made, more = ("tile_for", module.Tile(*tile), ())

    def in_place(impl: str) -> Any:
        if impl != "fused":
            return case.run(impl)
        with mock.patch.object(module, name, lambda *_: made):
            launch, out = module.plan(*case.given, *more, capability(case.given[0].device))
        run(launch)
        return out

    return replace(case, what=f"{case.what}, tile {' '.join(map(str, tile))}", run=in_place)


def flat(result: Any) -> Tensor:
    """An op's floating or pixel results as one float64 tensor."""
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return torch.cat([part.double() for part in parts if part.ndim == parts[0].ndim])


def error(call: Call, exact: Tensor) -> float:
    """Root mean square difference from float64, relative to its own size; NaN where something is missing."""
    return float((flat(call()) - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def runnable(case: Case, device: str, inductor: bool) -> tuple[dict[str, Call], dict[str, float], dict[str, str]]:
    """The candidates that run here and are right, every error, and why each of the others is left out."""
    exact = case.exact()
    allowed = 2 * error(partial(case.run, case.library[0]), exact) + 1e-7
    calls, errors, left_out = {}, {}, {}
    for name, call in case.candidates(device, inductor).items():
        try:
            errors[name] = error(call, exact)
        except (ValueError, RuntimeError) as problem:
            left_out[name] = f"{type(problem).__name__}: {' '.join(str(problem).split())[:300]}"
            continue
        if errors[name] <= allowed:
            calls[name] = call
        else:
            left_out[name] = f"off by {errors[name]:.1e}, {allowed:.1e} is allowed"
    return calls, errors, left_out


class Bench:
    """Measures cases at one row count on one device, against that device's peaks."""

    def __init__(
        self, device: str, dtype: torch.dtype, rows: int, repeats: int, peaks: Peaks | None, inductor: bool = True
    ) -> None:
        self.device, self.rows, self.repeats, self.peaks, self.inductor = device, rows, repeats, peaks, inductor
        self.make, self.levels = Maker(device, dtype), LEVELS if device == "cuda" else SMALL
        self.flush = torch.empty(1 << 28, dtype=torch.uint8, device="cuda") if device == "cuda" else None

    def records(self, op: str) -> Iterator[dict[str, Any]]:
        """The record of each case of an op."""
        for case in cases(op, self.make, self.rows, self.levels):
            yield self.measure(case)
            torch.compiler.reset()

    def measure(self, case: Case) -> dict[str, Any]:
        """The record of one case, printed as one line a candidate."""
        calls, errors, left_out = runnable(case, self.device, self.inductor)
        flush = self.flush
        before = (lambda: flush.zero_()) if flush is not None else (lambda: None)
        warm_up = 5 if self.device == "cuda" else 1
        times = interleaved(calls, self.repeats, self.device, warm_up=warm_up, before=before)
        return {"rows": self.rows, **_record(case, times, errors, left_out, self.peaks)}


def _record(
    case: Case,
    times: dict[str, list[float]],
    errors: dict[str, float],
    left_out: dict[str, str],
    peaks: Peaks | None,
) -> dict[str, Any]:
    record: dict[str, Any] = {
        **{name: getattr(case, name) for name in ("op", "what", "key", "work")},
        "MB": round(case.bytes / 1e6, 3),
        "GFLOP": round(case.flops / 1e9, 3),
        "error": {name: float(f"{value:.2e}") for name, value in errors.items()},
        "left out": left_out,
        "ms": {},
    }
    floor = peaks.bound_ms(case.flops, case.bytes) if peaks else 0.0
    if peaks:
        record["floor ms"] = round(floor, 5)
    print(f"{case.op}: {case.what}")
    for name, values in times.items():
        low, middle, high = map(float, np.quantile(values, (0.1, 0.5, 0.9)))
        record["ms"][name] = round(middle, 5)
        record.setdefault("p10, p90 ms", {})[name] = [round(low, 5), round(high, 5)]
        share = f"{100 * floor / middle:5.0f} % of floor" if floor else ""
        print(
            f"  {name:<10} {middle:>9.4f} ms ({low:.4f} to {high:.4f})  {case.bytes / middle / 1e6:>7.0f} GB/s "
            f"{case.flops / middle / 1e9:>7.1f} TFLOP/s  error {errors[name]:.1e} {share}",
            flush=True,
        )
    for name, why in left_out.items():
        print(f"  {name:<10} left out: {why[:110]}", flush=True)
    return record


def facts_of(device: str, dtype: str, repeats: int) -> dict[str, Any]:
    """What a results file says of the machine; of a GPU what the table says, too."""
    facts = metadata(PACKAGES, dtype=dtype, repeats=repeats)
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["capability"] = int("".join(map(str, torch.cuda.get_device_capability())))
    return facts


def into_table(path: Path, records: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Puts the medians into the table at `path`, in place of what it had of this GPU, type and op."""
    entries = json.loads(path.read_text())["entries"] if path.exists() else []
    shared = {name: facts[name] for name in ("gpu", "capability", "dtype", "versions", "commit")}
    fresh = [{**{k: r[k] for k in ("op", "key", "work", "ms")}, **shared} for r in records if r["ms"]]
    done = {(entry["op"], entry["gpu"], entry["dtype"]) for entry in fresh}
    kept = [entry for entry in entries if (entry["op"], entry["gpu"], entry["dtype"]) not in done]
    lines = ",\n".join(json.dumps(entry, sort_keys=True) for entry in [*kept, *fresh])
    path.write_text(f'{{"entries": [\n{lines}\n]}}\n')


@torch.inference_mode()
def main() -> None:
    parser = options_of(__doc__, repeats=50)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--op", choices=tuple(OPS), action="append", help="only this one; may be given again")
    parser.add_argument("--rows", default=None, help="UNet rows, guidance included (36,144; on a CPU 2)")
    parser.add_argument("--dtype", choices=DTYPES, default=None, help="(float16; on a CPU float32)")
    parser.add_argument("--table", type=Path, nargs="?", const=table.SHIPPED, help="table to put the medians into")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    if options.table is not None and not gpu:
        parser.error("--table needs --device cuda: what is fastest on a CPU says nothing of a GPU")
    kind = options.dtype or ("float16" if gpu else "float32")
    dtype, peaks = getattr(torch, kind), None
    facts = facts_of(options.device, kind, options.repeats)
    if gpu:
        peaks = measure_peaks(torch.device("cuda"), dtype)
        facts["reached"] = {"GB/s": round(peaks.gbytes, 1), "TFLOP/s": round(peaks.tflops, 1)}
    print(json.dumps(facts))
    records = []
    for rows in [int(n) for n in (options.rows or ("36,144" if gpu else "2")).split(",")]:
        bench = Bench(options.device, dtype, rows, options.repeats, peaks)
        for op in options.op or OPS:
            records += bench.records(op)
    write(options.out, {**facts, "cases": records})
    if options.table is not None:
        into_table(options.table, records, facts)
    if not any(record["ms"] for record in records):
        sys.exit("nothing could be measured: every candidate of every case was left out")


if __name__ == "__main__":
    main()
