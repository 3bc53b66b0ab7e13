"""The inputs of a UNet while it samples, and the largest values inside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, ValueInfoProto
from onnx.helper import make_node, make_opsetid
from onnx.parser import parse_function
from torch import Tensor

from dive_export.graphs import Graph
from dive_export.qdq import save
from dive_fast.engines.node_runner import CPU, cast_inputs, plain_session
from dive_fast.models import ModelBundle, PromptEncoder, PromptKey
from dive_fast.sampling import Sampling, Schedule, dpmpp_2m, guided, initial_noise, repeated
from dive_fast.types import InputError

Inputs = Mapping[str, np.ndarray]
# The largest |x| once a fraction of the values, larger ones, is left out.
PEAK = """
<domain: "dive_fp8", opset_import: ["": 23]>
peak (x) => (largest) {
    float = Cast <to = 1> (x)
    size = Abs (float)
    all = Constant <value_ints = [-1]> ()
    flat = Reshape (size, all)
    count = Size (x)
    double = Cast <to = 11> (count)
    fraction = Constant <value = double {%r}> ()
    one = Constant <value = double {1.0}> ()
    above = Mul (double, fraction)
    whole = Floor (above)
    rank = Add (whole, one)
    integer = Cast <to = 7> (rank)
    k = Reshape (integer, all)
    top, where = TopK <sorted = 0> (flat, k)
    largest = ReduceMin <keepdims = 0> (top)
}
"""


@dataclass(frozen=True)
class Calibration:
    """Inputs of a UNet graph, one mapping per call: `scales` set the scales, `held_out` measure the error.

    Seeds and identities of the two should differ (`sampling_inputs`), or the error is too small.
    """

    scales: Sequence[Inputs]
    held_out: Sequence[Inputs]

    def __post_init__(self) -> None:
        if not self.scales or not self.held_out:
            raise InputError(
                f"calibration: {len(self.scales)} calls to set scales and {len(self.held_out)} held out; "
                "each needs at least one"
            )


def sampling_inputs(
    bundle: ModelBundle, graph: Graph, keys: Sequence[PromptKey], seeds: Sequence[int], sampling: Sampling
) -> list[dict[str, np.ndarray]]:
    """The inputs of every UNet call while torch samples the images of `keys` from `seeds` (one each).

    `graph` is the UNet part that will read them, of any variant; float32 arrays, in the order of its inputs.
    Raises `InputError` for keys that the model does not know.
    """
    if bundle.prompts is None:
        raise InputError("calibration: the model has no prompts.json; fuse an adapter into the base first")
    if len(keys) != len(seeds):
        raise InputError(f"calibration: {len(keys)} prompts and {len(seeds)} seeds; give one seed a prompt")
    schedule = Schedule.from_config(bundle.scheduler_config, sampling.steps)
    recorded: list[dict[str, np.ndarray]] = []

    def eps_rows(latents: Tensor, timestep: int, prompt_index: Tensor) -> Tensor:
        inputs = _reference_inputs(graph, latents, timestep, embeddings, prompt_index)
        recorded.append({name: tensor.numpy().copy() for name, tensor in graph.feeds(inputs).items()})
        out: Tensor = graph.reference(*inputs.values())
        return out

    with torch.no_grad():
        embeddings, index = PromptEncoder(bundle.tokenizer, bundle.prompts).encode(
            lambda ids: bundle.text_encoder(ids, return_dict=True).last_hidden_state, [None, *keys]
        )
        eps = guided(eps_rows, index[1:], int(index[0]), sampling.guidance, sampling.guided_timesteps(schedule))
        _, channels, height, width = graph.examples(1)["sample"].shape
        noise = initial_noise(seeds, (channels, height, width))
        dpmpp_2m(eps, noise, schedule)
    return recorded


def _reference_inputs(
    graph: Graph, latents: Tensor, timestep: int, embeddings: Tensor, prompt_index: Tensor
) -> dict[str, Tensor]:
    rows = len(prompt_index)
    cached = "kv_bank" in graph.inputs
    inputs = {
        "sample": latents if "image_index" in graph.inputs else repeated(latents, rows),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": embeddings if cached else embeddings[prompt_index],
    }
    if cached:
        inputs["prompt_index"] = prompt_index
    if "image_index" in graph.inputs:
        inputs["image_index"] = torch.arange(rows) % len(latents)
    return inputs


def peaks(
    model: Any, path: Path, names: Sequence[str], calls: Sequence[Inputs], percentile: float, provider: str = CPU
) -> dict[str, float]:
    """Returns, for each tensor in `names`, the largest percentile of |value| of any call; 100 is the largest value.

    `model` is the graph of `path`, with or without its weights. The graph computes the percentiles itself.
    """
    probed = ModelProto()
    probed.CopyFrom(model)
    probed.functions.append(parse_function(PEAK % ((100 - percentile) / 100)))
    probed.opset_import.append(make_opsetid("dive_fp8", 1))
    graph = probed.graph
    outputs = {name: f"peak_of_{name}" for name in dict.fromkeys(names)}
    graph.node.extend(make_node("peak", [name], [output], domain="dive_fp8") for name, output in outputs.items())
    del graph.output[:]
    graph.output.extend(ValueInfoProto(name=output) for output in outputs.values())
    with opened(probed, path, provider) as session:
        found = [session.run(list(outputs.values()), cast_inputs(model.graph, call, str(path))) for call in calls]
    return {name: float(np.max([values[i] for values in found])) for i, name in enumerate(outputs)}


@contextmanager
def opened(model: Any, path: Path, provider: str = CPU, beside: Path | None = None) -> Iterator[Any]:
    """Yields an onnxruntime session of `model`, which is used up, from a temporary file: models may exceed 2 GB.

    `path` is the graph whose external weights `model` refers to; `beside` is the temporary folder's parent.
    """
    with tempfile.TemporaryDirectory(prefix=".dive-fp8-", dir=beside) as folder:
        file = Path(folder) / "model.onnx"
        save(model, path, file)
        yield plain_session(str(file), provider, str(path))
