"""onnxruntime against eager torch on the pocket model: `python -m benchmarks.engines --out FILE` (part of make bench).

Both engines run the same fused model in the same process, calls interleaved, on random data; parity comes before speed.
A figure is a median; the ratio is what counts on a CPU. The faster of the two is what the walk uses by default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dive_fast.engines import Engine, load_engine
from dive_fast.models import fuse, load_adapter, load_bundle, save_bundle
from dive_fast.sampling import Schedule, dpmpp_2m, guided, initial_noise

ROWS = (2, 8, 32, 64)
IMAGES, STEPS, GUIDANCE = 16, 10, 2.0


def _latents(engine: Engine, keys: list[tuple[str, str]]) -> torch.Tensor:
    """The whole loop but for decoding: `IMAGES` images of many prompts in one batch."""
    embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
    conditioning = engine.condition(embeddings)
    noise = initial_noise(range(IMAGES), engine.latent_shape)
    schedule = Schedule.from_config(engine.scheduler_config, STEPS)
    eps = guided(lambda x, t, i: engine.eps(x, t, conditioning, i), index[1:], 0, GUIDANCE)
    return dpmpp_2m(eps, noise, schedule)


def _interleaved(runs: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each call, the candidates in turn so that the machine's moods hit all alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if turn:  # the first is a warm-up
                times[name].append(1e3 * (time.perf_counter() - begun))
    return times


def _row(what: str, times: dict[str, list[float]]) -> dict[str, Any]:
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratios = [t / o for t, o in zip(times["torch"], times["onnxruntime"], strict=True)]
    row = {
        "what": what,
        **{f"{name} ms": round(value, 2) for name, value in middle.items()},
        "torch / onnxruntime": round(statistics.median(ratios), 2),
        "ratio range": [round(min(ratios), 2), round(max(ratios), 2)],
    }
    print(f"{what:<28}" + "".join(f"{name} {value:>9.1f} ms   " for name, value in middle.items())
          + f"{row['torch / onnxruntime']:.2f}x", flush=True)  # fmt: skip
    return row


def measure(repeats: int) -> dict[str, Any]:
    """Parity, then UNet calls by rows, then the whole loop and the decoder, for the shipped model."""
    from dive_export import export_engine

    with tempfile.TemporaryDirectory() as folder:
        fused, exported = Path(folder) / "fused", Path(folder) / "engine"
        save_bundle(fuse(load_bundle("pocket"), load_adapter("pocket")), fused)
        export_engine(fused, exported, rows_max=max(ROWS))
        engines = {"torch": load_engine(fused), "onnxruntime": load_engine(exported)}
        people = [identity.pid for identity in engines["torch"].prompts.table.identities][:IMAGES]
        keys = [(pid, "cam3") for pid in people]
        latents = {name: _latents(engine, keys) for name, engine in engines.items()}
        images = {name: engine.decode(latents[name]).int() for name, engine in engines.items()}
        difference = int((images["torch"] - images["onnxruntime"]).abs().max())
        rows = []
        generator = torch.Generator().manual_seed(0)
        for count in ROWS:
            x = torch.randn((count, *engines["torch"].latent_shape), generator=generator)
            runs = {}
            for name, engine in engines.items():
                embeddings, index = engine.prompts.encode(engine.encode_text, (keys * count)[:count])
                conditioning = engine.condition(embeddings)
                runs[name] = lambda e=engine, c=conditioning, i=index, x=x: e.eps(x, 500, c, i)
            rows.append(_row(f"UNet call, {count} rows", _interleaved(runs, repeats)))
        loops = {name: (lambda e=engine: _latents(e, keys)) for name, engine in engines.items()}
        rows.append(_row(f"{IMAGES} images, {STEPS} steps", _interleaved(loops, max(3, repeats // 3))))
        decoders = {name: (lambda e=engine, z=latents[name]: e.decode(z)) for name, engine in engines.items()}
        rows.append(_row(f"decode {IMAGES} images", _interleaved(decoders, repeats)))
    return {"largest image difference, of 255": difference, "rows": rows}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "not a git checkout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    facts = {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "diffusers", "onnx")},
        "commit": _commit(),
        "repeats": options.repeats,
    }
    result = {**facts, **measure(options.repeats)}
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
