"""The shapes that an engine is built for: few profiles, of one size each but for the length of the K/V cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx.helper import tensor_dtype_to_np_dtype

from dive_export.options import BuildConfig
from dive_export.tensorrt_build import Range, Shapes
from dive_fast.engines.base import Geometry
from dive_fast.engines.node_runner import read_graph
from dive_fast.json_files import read_json
from dive_fast.types import DiveError, EngineSpec

PER_IMAGE = (2, 1)  # rows that share an image: with guidance, and without
PROMPTS_BEST = 64  # a shard's prompts, about


def axis_sizes(part: str, spec: EngineSpec, config: BuildConfig) -> list[dict[str, Range]]:
    """Returns, for each profile of a part, the ranges of the axes that its graph may name.

    Only the length of the K/V cache is a range: a gather alone reads it, and padding would take 3.8 MB a prompt (SD 1.5,
    fp16). With a shared prefix, each row count has two profiles: half as many images (guidance) and as many (without).
    """
    if part != "unet":
        counts = config.vae_rows if part.startswith("vae") else config.text_rows
        return [{"rows": (n, n, n), "prompts": (n, n, n)} for n in counts]
    prompts = (1, min(PROMPTS_BEST, config.prompts_max), config.prompts_max)
    shared = PER_IMAGE if "shared_prefix" in spec.optimizations else (1,)
    pairs = [(n, math.ceil(n / k)) for n in config.rows for k in shared]
    return [{"rows": (n, n, n), "images": (b, b, b), "prompts": prompts} for n, b in dict.fromkeys(pairs)]


def profiles(part: str, graph: Path, spec: EngineSpec, sizes: list[dict[str, Range]]) -> list[Shapes]:
    """Returns a graph's profiles: the range of each dimension of every input with a free axis.

    Free image sizes, an input's third and fourth dimension, become the engine's own. Raises `DiveError` for an axis that is
    not in `sizes`.
    """
    inputs = {value.name: dimensions(value) for value in read_graph(graph).graph.input}
    folder = graph.parents[1]
    unet, vae = (read_json(folder / name / "config.json", "engine") for name in ("unet", "vae_decoder"))
    scale = 1 if part == "vae_encoder" else Geometry.from_configs(unet, vae, f"engine {folder}").vae_scale
    image = [(n // scale,) * 3 for n in (spec.profile.height, spec.profile.width)]
    free = {name: shape for name, shape in inputs.items() if any(isinstance(n, str) for n in shape)}
    return [
        {
            name: tuple(
                (n, n, n) if isinstance(n, int) else image[i - 2] if i > 1 else _axis(n, axes, f"build {part}: {name}")
                for i, n in enumerate(shape)
            )
            for name, shape in free.items()
        }
        for axes in sizes
    ]


def dimensions(value: Any) -> list[int | str]:
    """Returns the sizes of a value's dimensions, names for the free ones."""
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def activations(graph: Path, shapes: Shapes) -> int:
    """Estimates the bytes of values held at once when the nodes run one by one in the file's order.

    `shapes` is a profile, at its largest. TensorRT fuses, reorders and uses scratch, so it needs another amount. Values of
    unknown size count as nothing; graphs of any size have many.
    """
    model = read_graph(graph).graph
    known: dict[str, int] = {}
    for value in model.input:
        for name, (_, _, most) in zip(dimensions(value), shapes.get(value.name, ()), strict=False):
            if isinstance(name, str):  # as in 2*height_over_2
                factor, _, symbol = name.rpartition("*")
                known[symbol] = most // int(factor or 1)
    weights = {tensor.name for tensor in model.initializer}  # whose shapes the exporter writes too
    sizes = {}
    for value in (*model.value_info, *model.input, *model.output):
        if value.name in weights:
            continue
        shape = [_evaluated(n, known) for n in dimensions(value)]
        sizes[value.name] = math.prod(shape) * tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize
    last = {name: i for i, node in enumerate(model.node) for name in node.input}
    held = peak = sum(sizes[value.name] for value in model.input)
    for i, node in enumerate(model.node):
        held += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, held)
        held -= sum(sizes.get(name, 0) for name in set(node.input) if last[name] == i)
    return peak


def weights_size(graph: Path) -> int:
    """Returns the bytes of all initializers of a graph."""
    tensors = read_graph(graph).graph.initializer
    return sum(math.prod(t.dims) * tensor_dtype_to_np_dtype(t.data_type).itemsize for t in tensors)


def _axis(name: str, axes: Mapping[str, Range], where: str) -> Range:
    if name not in axes:
        raise DiveError(f"{where} has a free axis {name!r}, known are {', '.join(axes)}; export the engine again")
    return axes[name]


def _evaluated(size: int | str, known: Mapping[str, int]) -> int:
    """Evaluates a dimension, perhaps a product like 4*rows; 0 if a factor is unknown."""
    return math.prod(int(f) if f.isdecimal() else known.get(f, 0) for f in str(size).split("*"))
