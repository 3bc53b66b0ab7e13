"""Both UNet variants by onnxruntime, and OpenVINO, against torch, eager and compiled, on the pocket model: `python -m
benchmarks.engines --out FILE` (part of make bench, about 5 minutes).

All run the same fused model in the same process, calls interleaved, on random data; parity comes before speed. A figure is
a median; the ratios are what counts on a CPU: eager torch's time by each other's, turn by turn. Compiled torch (inductor)
is our torch-compiled engine: kv-cache variant, exact savings. OpenVINO runs the plain variant, and takes part where it is
installed, in bf16 where the CPU has that.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import interleaved, medians, metadata, options_of, sample, write
from dive_fast.bench.run import model_folder
from dive_fast.bench.timing import ratio
from dive_fast.engines import Engine, load_engine
from dive_fast.engines.openvino_engine import bf16_here
from dive_fast.sampling import Schedule, initial_noise

ROWS = (2, 8, 32)
EAGER, COMPILED, PLAIN, BANK = "torch", "torch-compiled", "onnxruntime", "onnxruntime bank"
OPENVINO, HALF = "openvino", "openvino bf16"
IMAGES, STEPS, GUIDANCE = 16, 10, 2.0


def _latents(engine: Engine, keys: list[tuple[str, str]]) -> torch.Tensor:
    """The whole loop but for decoding: `IMAGES` images of many prompts in one batch."""
    embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
    conditioning = engine.condition(embeddings)
    noise = initial_noise(range(IMAGES), engine.latent_shape)
    schedule = Schedule.from_config(engine.scheduler_config, STEPS)
    return sample(engine, conditioning, index[1:], noise, schedule, GUIDANCE)


def _row(what: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in milliseconds, and how many times as fast as eager torch each is: median, least and most of all turns."""
    middle = medians(times)
    ratios = {name: ratio(times[EAGER], values) for name, values in times.items() if name != EAGER}
    others = "   ".join(f"{name} {middle[name]:.1f} ms {r.median:.2f}x" for name, r in ratios.items())
    print(f"{what:<22}{EAGER} {middle[EAGER]:.1f} ms   {others}", flush=True)
    return {
        "what": what,
        **{f"{name} ms": round(value, 2) for name, value in middle.items()},
        **{f"{EAGER} / {name}": round(r.median, 2) for name, r in ratios.items()},
        "ratio ranges": {name: [round(r.low, 2), round(r.high, 2)] for name, r in ratios.items()},
    }


def _engines(folder: Path, compiled: bool) -> dict[str, Engine]:
    from dive_export import GraphOptions, export_engine

    _, fused = model_folder("pocket", "cpu", folder)
    engines = {EAGER: load_engine(fused)}
    for name, options in ((PLAIN, GraphOptions()), (BANK, GraphOptions(variant="kv-cache"))):
        export_engine(fused, folder / name, rows_max=max(ROWS), check=False, options=options)
        engines[name] = load_engine(folder / name, "onnxruntime", "cpu")
    if importlib.util.find_spec("openvino"):
        engines[OPENVINO] = load_engine(folder / PLAIN, "openvino", "cpu")
        if bf16_here():
            engines[HALF] = load_engine(folder / PLAIN, "openvino", "cpu", precision="bf16")
    if compiled:
        engines[COMPILED] = load_engine(fused, "torch-compiled")
    return engines


def measure(repeats: int, compiled: bool) -> dict[str, Any]:
    """Parity, then UNet calls by rows, then the whole loop and the decoder, for the shipped model."""
    with tempfile.TemporaryDirectory() as folder:
        engines = _engines(Path(folder), compiled)
        people = [identity.pid for identity in engines[EAGER].prompts.table.identities][:IMAGES]
        keys = [(pid, "cam3") for pid in people]
        latents = {name: _latents(engine, keys) for name, engine in engines.items()}
        images = {name: engine.decode(latents[name]).int() for name, engine in engines.items()}
        difference = {name: int((images[EAGER] - other).abs().max()) for name, other in images.items() if name != EAGER}
        rows = []
        generator = torch.Generator().manual_seed(0)
        for count in ROWS:
            x = torch.randn((count // 2, *engines[EAGER].latent_shape), generator=generator)
            runs = {}
            for name, engine in engines.items():
                embeddings, index = engine.prompts.encode(engine.encode_text, [None, *(keys * count)[: count // 2]])
                conditioning = engine.condition(embeddings)
                both = torch.cat([torch.zeros_like(index[1:]), index[1:]])  # as guidance asks: each image twice
                runs[name] = lambda e=engine, c=conditioning, i=both, x=x: e.eps(x, 500, c, i)
            rows.append(_row(f"UNet call, {count} rows", interleaved(runs, repeats)))
        loops = {name: (lambda e=engine: _latents(e, keys)) for name, engine in engines.items()}
        rows.append(_row(f"{IMAGES} images, {STEPS} steps", interleaved(loops, max(3, repeats // 3))))
        timed = [name for name in (EAGER, PLAIN, COMPILED, OPENVINO, HALF) if name in engines]
        decoders = {name: (lambda e=engines[name], z=latents[name]: e.decode(z)) for name in timed}
        rows.append(_row(f"decode {IMAGES} images", interleaved(decoders, repeats)))
    return {"largest image difference, of 255": difference, "rows": rows}


def main() -> None:
    parser = options_of(__doc__, repeats=15)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it needs a C++ compiler)")
    options = parser.parse_args()
    packages = ("torch", "onnxruntime", "openvino", "diffusers", "onnx")
    found = measure(options.repeats, not options.no_compile)
    write(options.out, metadata(packages, threads=torch.get_num_threads(), repeats=options.repeats, **found))


if __name__ == "__main__":
    main()
