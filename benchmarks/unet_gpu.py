"""The UNet at Stable Diffusion 1.5's size on a GPU, random weights: `python -m benchmarks.unet_gpu --out FILE`.

In one run, calls interleaved: torch eager and compiled (fp16, channels last), our kv-cache variant with all exact savings,
eager and compiled, without our kernels, with all of them, and with those that the table of measurements chooses; and
onnxruntime's CUDA provider on the exported bank where onnxruntime-gpu is installed. For each row count (guidance
included): milliseconds (median), TFLOP/s at 372.5 GFLOP a row (512x256, counted on the configuration), images/s of 25 steps
by the UNet alone, and the error against float32 at two rows. `--model pocket` and `--device cpu` try the script itself, in
float32 and with the kernels' references: absolute times count on a GPU only.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import interleaved, medians, metadata, options_of, write
from dive_export.options import GraphOptions
from dive_fast.sampling import repeated
from dive_fast.unet.graphs import CachedUnetGraph, KVCacheGraph, UnetGraph
from dive_fast.unet.kernels import Workload, use_kernels

GFLOP = {"sd15": 372.5}  # a row
STEPS = 25
PACKAGES = ("torch", "diffusers", "onnxruntime", "onnxruntime-gpu")
PROMPTS = 16
PLAIN, COMPILED, BANK, ONNX = "eager", "compile", "bank", "onnxruntime bank"
KERNELS, CHOSEN = "bank kernels", "bank auto"
Call = Callable[[], Tensor]


def bundle_of(name: str) -> Any:
    """Stable Diffusion 1.5's configuration with random weights, or the shipped model."""
    if name == "sd15":
        from dive_fast.bench.sd15 import sd15

        return sd15(real=("unet",))
    from dive_fast.models import load_bundle

    return load_bundle(name)


class Inputs:
    """One call's inputs: `rows` rows, guidance's two of each image, of `PROMPTS` prompts."""

    def __init__(self, unet: Any, tokens: int, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(rows)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        size = unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        images = rows // 2
        self.images = noise(images, unet.config.in_channels, height, width)
        self.prompts = noise(PROMPTS + 1, tokens, unet.config.cross_attention_dim)
        self.timestep = torch.tensor([500], device=device)
        self.image_index = repeated(torch.arange(images), rows).to(device)
        asked = torch.arange(images) % PROMPTS + 1
        self.prompt_index = torch.cat([torch.zeros_like(asked), asked]).to(device)


def candidates(bundle: Any, rows: int, device: torch.device, dtype: torch.dtype, folder: Path) -> dict[str, Call]:
    """What is timed, by name; each call answers float [rows, C, h, w]."""
    unet = bundle.unet
    options = GraphOptions("kv-cache", "fp16" if dtype == torch.float16 else "fp32")
    plain, reduced, kernels, chosen = (
        module.to(memory_format=torch.channels_last)
        for module in (UnetGraph(unet), *(CachedUnetGraph(unet, options.applied, timesteps=1000) for _ in range(3)))
    )
    use_kernels(kernels, impl="fused" if device.type == "cuda" else "reference")
    tokens = bundle.tokenizer.model_max_length
    given = Inputs(unet, tokens, rows, device, dtype)
    work = Workload(rows, tuple(given.images.shape[2:]), tokens, compiled=True)
    print(f"{CHOSEN} compile, {rows} rows: {use_kernels(chosen, workload=work).summary}")
    latents = given.images.contiguous(memory_format=torch.channels_last)
    bank = KVCacheGraph(unet)(given.prompts)
    hidden = given.prompts[given.prompt_index]
    both = latents.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    rest = (given.timestep, bank, given.prompt_index, given.image_index)
    found: dict[str, Call] = {}
    for name, module in ((PLAIN, plain), (BANK, reduced), (KERNELS, kernels), (CHOSEN, chosen)):
        arguments = (both, given.timestep, hidden) if module is plain else (latents, *rest)
        if name != CHOSEN:
            found[name] = partial(module, *arguments)
        compiled = torch.compile(module, mode="max-autotune-no-cudagraphs")
        found[COMPILED if name == PLAIN else f"{name} compile"] = partial(compiled, *arguments)
    run = onnx_call(bundle, options, device, folder)
    if run is None:
        print(f"{ONNX} is left out: no onnxruntime with a provider for {device.type} is installed", file=sys.stderr)
    else:
        names = ("sample", "timestep", "kv_bank", "prompt_index", "image_index")
        feeds = dict(zip(names, (latents, *rest), strict=True))
        found[ONNX] = lambda: run(feeds, both.shape)
    return found


def onnx_call(bundle: Any, options: GraphOptions, device: torch.device, folder: Path) -> Callable[..., Tensor] | None:
    """The exported bank UNet by onnxruntime on `device`, exported once to `folder`; None where no such provider is."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    from dive_export.graphs import graphs
    from dive_export.onnx import export_graph
    from dive_fast.engines.onnx_session import PROVIDERS, Network, place

    kind = "cuda" if device.type == "cuda" else "cpu"
    if PROVIDERS[kind] not in onnxruntime.get_available_providers():
        return None
    path = folder / "model.onnx"
    if not path.exists():
        cpu = copy.copy(bundle)
        cpu.unet = nn.Module.to(copy.deepcopy(bundle.unet), "cpu", torch.float32)
        (graph,) = [graph for graph in graphs(cpu, None, 256, options)[0] if graph.part == "unet"]
        export_graph(graph, path, options.precision)
    network = Network.open(path, place(kind, options.precision, folder), torch.get_num_threads())
    return lambda feeds, shape: network.run("out_sample", shape, **feeds)


def errors(
    calls: dict[str, Call], unet: Any, tokens: int, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """Root mean square difference from the float32 UNet over its own, at two rows of the same inputs."""
    given = Inputs(unet, tokens, 2, device, dtype)
    exact = UnetGraph(nn.Module.to(copy.deepcopy(unet), device, torch.float32))
    both, hidden = given.images.repeat(2, 1, 1, 1).float(), given.prompts[given.prompt_index].float()
    expected = exact(both, given.timestep, hidden)
    return {
        name: float((call().float() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
        for name, call in calls.items()
    }


@torch.inference_mode()
def measure(model: str, rows: list[int], repeats: int, device: torch.device) -> dict[str, Any]:
    """Errors at two rows, then the times of each row count."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    bundle = bundle_of(model)
    weights = copy.deepcopy(bundle.unet)  # float32, before the candidates take the UNet over
    with TemporaryDirectory() as folder:
        nn.Module.to(bundle.unet, device, dtype)  # as torch_engine: diffusers' own warns of nothing
        two = candidates(bundle, 2, device, dtype, Path(folder))
        apart = errors(two, weights, bundle.tokenizer.model_max_length, device, dtype)
        found = []
        for count in rows:
            torch.compiler.reset()
            calls = candidates(bundle, count, device, dtype, Path(folder))
            times = interleaved(calls, repeats, device.type, warm_up=2)
            middle = medians(times)
            row: dict[str, Any] = {"rows": count, "ms": {name: round(value, 3) for name, value in middle.items()}}
            row["times eager"] = {name: round(middle[PLAIN] / value, 2) for name, value in middle.items()}
            row["images/s, UNet alone"] = {n: round(count / 2 / STEPS / v * 1e3, 2) for n, v in middle.items()}
            if model in GFLOP:
                row["TFLOP/s"] = {name: round(count * GFLOP[model] / value, 1) for name, value in middle.items()}
            print(json.dumps(row), flush=True)
            found.append(row)
    return {"error": apart, "rows": found}


def main() -> None:
    parser = options_of(__doc__, repeats=20)
    parser.add_argument("--model", default="sd15", help="sd15 (random weights), pocket or a model folder")
    parser.add_argument("--rows", default="36,72,144")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    result = metadata(PACKAGES, model=options.model, repeats=options.repeats)
    if device.type == "cuda":
        result["machine"] = torch.cuda.get_device_name(device)
    result |= measure(options.model, [int(n) for n in options.rows.split(",")], options.repeats, device)
    print(json.dumps(result["error"]))
    write(options.out, result)


if __name__ == "__main__":
    main()
