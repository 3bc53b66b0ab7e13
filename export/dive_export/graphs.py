"""The networks of a model as plain modules with named tensors in and out, as optimum names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dive_export.kernel_node import NodeUnetGraph
from dive_export.options import GraphOptions
from dive_fast.engines.base import Geometry
from dive_fast.types import InputError
from dive_fast.unet.graphs import (
    TIMESTEPS,
    CachedUnetGraph,
    IndexedUnetGraph,
    KVCacheGraph,
    ReducedUnetGraph,
    UnetGraph,
    VaeDecoderGraph,
    cross_attentions,
)
from dive_fast.unet.optimizations import WithoutUnitScale

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle


class TextEncoderGraph(nn.Module):
    """input_ids int64 [P, L] -> last_hidden_state float32 [P, L, D]."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.text_encoder(input_ids, return_dict=True).last_hidden_state
        return hidden


class VaeEncoderGraph(nn.Module):
    """sample [B, 3, H, W] in -1..1 -> latent_parameters [B, 2C, h, w]: the posterior's mean, then its log variance."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        parameters: Tensor = self.vae.encode(sample).latent_dist.parameters  # type: ignore[operator]
        return parameters


@dataclass(frozen=True)
class Axis:
    """A dimension that stays free in the graph: `name` there, `size` in examples, always a multiple of `multiple`."""

    name: str
    size: int
    multiple: int = 1


Shape = tuple[int | Axis, ...]


def _rows(*sizes: int | Axis) -> Shape:
    return Axis("rows", 0), *sizes


@dataclass(frozen=True)
class Graph:
    """One network to export.

    `inputs` maps names to shapes; `examples` chooses the sizes of the axes rows, images and prompts. `vocabulary` bounds
    token ids. `check_rows` limits the row counts at which parity is measured.

    `reference` is the library's own network in float32, which `module` must equal. It reads the same inputs, but
    `encoder_hidden_states` [P, L, D] in place of a `kv_bank`, which `cache` computes from them.
    """

    part: str
    module: nn.Module
    inputs: dict[str, Shape]
    output: str
    vocabulary: int
    check_rows: int
    reference: nn.Module
    cache: KVCacheGraph | None = None
    embeddings: tuple[int, ...] = ()

    def examples(self, rows: int, seed: int = 0) -> dict[str, Tensor]:
        """Returns random inputs of `reference` in order: float32 noise, or int64 token ids, timesteps and indices.

        With an image index, two rows share an image; prompts are fewer than rows.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        sizes = {"rows": rows, "images": max(1, rows // 2), "prompts": max(1, rows - 1)}
        shapes = dict(self.inputs)
        if self.cache is not None:
            prompts, *_ = shapes["kv_bank"]
            names = ["encoder_hidden_states" if name == "kv_bank" else name for name in shapes]
            shapes = dict(zip(names, shapes.values(), strict=True))
            shapes["encoder_hidden_states"] = (prompts, *self.embeddings)
        plain = {
            name: [sizes.get(n.name, n.size) if isinstance(n, Axis) else n for n in shape]
            for name, shape in shapes.items()
        }
        return {name: self._example(name, shape, sizes, generator) for name, shape in plain.items()}

    def feeds(self, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the inputs of `module` that correspond to `examples`, those of `reference`."""
        if self.cache is None:
            return examples
        with torch.no_grad():
            kv_bank = self.cache(examples["encoder_hidden_states"])
        return {name: kv_bank if name == "kv_bank" else examples[name] for name in self.inputs}

    def _example(self, name: str, shape: list[int], sizes: dict[str, int], generator: torch.Generator) -> Tensor:
        if name == "image_index":
            return torch.arange(shape[0]) % sizes["images"]
        limits = {"input_ids": (0, self.vocabulary), "timestep": (1, 1000), "prompt_index": (0, sizes["prompts"])}
        if name in limits:
            return torch.randint(*limits[name], shape, generator=generator)
        return torch.randn(shape, generator=generator)


def graphs(
    bundle: ModelBundle, size: tuple[int, int] | None, rows_max: int, options: GraphOptions | None = None
) -> tuple[list[Graph], tuple[int, int]]:
    """Returns the networks of `bundle` and the image size (height, width) in pixels, by default the UNet's own.

    Raises `InputError` for a size that the UNet cannot halve, and for a UNet that `options` do not fit.
    """
    options = options or GraphOptions()
    unet, vae, text = bundle.unet, bundle.vae, TextEncoderGraph(bundle.text_encoder)
    geometry = Geometry.from_configs(unet.config, vae.config, "export")
    scale, halvings = geometry.vae_scale, geometry.unet_halvings
    height, width = size or geometry.own_size(unet.config)
    misfits = geometry.misfits(height, width)
    if misfits or min(height, width) < 1:
        raise InputError(f"export: {'; '.join(misfits) or 'height and width must be > 0'}; choose another --size")
    sides: Shape = (height // scale, width // scale)
    pixels: Shape = (height, width)
    if options.any_size:
        # At least two multiples: the tracer would take a dimension that is 1 on the lowest level for a constant.
        tall, wide = (max(side, 2 * scale * 2**halvings) for side in (height, width))
        sides = (Axis("height", tall // scale, 2**halvings), Axis("width", wide // scale, 2**halvings))
        pixels = (Axis("height", tall, scale), Axis("width", wide, scale))
    latents: Shape = (unet.config.in_channels, *sides)
    tokens, vocabulary = bundle.tokenizer.model_max_length, len(bundle.tokenizer)
    few = min(rows_max, 8)  # a decoder's memory grows with pixels times rows
    decoder, encoder = VaeDecoderGraph(vae), VaeEncoderGraph(vae)
    from_latents, from_pixels = {"latent_sample": _rows(*latents)}, {"sample": _rows(3, *pixels)}
    parts = [
        Graph("text_encoder", text, {"input_ids": _rows(tokens)}, "last_hidden_state", vocabulary, rows_max, text),
        *_unet_graphs(bundle, latents, (tokens, unet.config.cross_attention_dim), rows_max, options),
        Graph("vae_decoder", _scaled(decoder, options), from_latents, "sample", 0, few, decoder),
        Graph("vae_encoder", _scaled(encoder, options), from_pixels, "latent_parameters", 0, few, encoder),
    ]
    return parts, (height, width)


def _unet_graphs(
    bundle: ModelBundle, latents: Shape, embeddings: tuple[int, int], rows_max: int, options: GraphOptions
) -> list[Graph]:
    """Returns the UNet's graph; with a K/V cache, after the graph that computes the cache."""
    unet, chosen = bundle.unet, options.applied
    timesteps = int(bundle.scheduler_config.get("num_train_timesteps", TIMESTEPS))
    if options.variant == "plain":
        reference = UnetGraph(unet)
        inner = {"time_table", "fused_qkv"} & set(chosen)
        module: nn.Module = ReducedUnetGraph(unet, chosen, timesteps) if inner else reference
        inputs = {"sample": _rows(*latents), "timestep": (1,), "encoder_hidden_states": _rows(*embeddings)}
        return [Graph("unet", _scaled(module, options), inputs, "out_sample", 0, rows_max, reference)]
    cache = KVCacheGraph(unet)
    width = sum(layer.to_k.out_features for _, layer in cross_attentions(unet))
    prompts = Axis("prompts", 0)
    inputs = {
        "sample": (Axis("images" if "shared_prefix" in chosen else "rows", 0), *latents),
        "timestep": (1,),
        "kv_bank": (prompts, 2, embeddings[0], width),
        "prompt_index": _rows(),
    }
    if "shared_prefix" in chosen:
        inputs["image_index"] = _rows()
    variant = NodeUnetGraph if "kv_gather" in chosen else CachedUnetGraph
    network: nn.Module = variant(unet, chosen, timesteps)
    to_cache = Graph(
        "prompt_bank", cache, {"encoder_hidden_states": (prompts, *embeddings)}, "kv_bank", 0, rows_max, cache
    )
    module, indexed = _scaled(network, options), IndexedUnetGraph(unet)
    return [to_cache, Graph("unet", module, inputs, "out_sample", 0, rows_max, indexed, cache, embeddings)]


def _scaled(network: nn.Module, options: GraphOptions) -> nn.Module:
    return WithoutUnitScale(network) if "unit_scale" in options.applied else network
