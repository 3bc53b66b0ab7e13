"""The four networks as plain modules with named tensors in and out, as optimum names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dive_fast.types import InputError

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


class UnetGraph(nn.Module):
    """sample [R, C, h, w], timestep int64 [1], encoder_hidden_states [R, L, D] -> out_sample [R, C, h, w]."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class VaeDecoderGraph(nn.Module):
    """latent_sample [B, C, h, w], unscaled -> sample [B, 3, H, W] in about -1..1."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]  # type: ignore[operator]
        return image


class VaeEncoderGraph(nn.Module):
    """sample [B, 3, H, W] in -1..1 -> latent_parameters [B, 2C, h, w]: the posterior's mean, then its log variance."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        parameters: Tensor = self.vae.encode(sample).latent_dist.parameters  # type: ignore[operator]
        return parameters


@dataclass(frozen=True)
class Graph:
    """One network to export.

    `inputs` maps a name to its shape without rows; every input has rows first but `timestep`, which is [1] for all.
    `vocabulary` bounds token ids. `check_rows` limits the row counts at which parity is measured.
    """

    part: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    output: str
    vocabulary: int
    check_rows: int

    def has_rows(self, name: str) -> bool:
        return name != "timestep"

    def examples(self, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs in order: float32 normal noise, or int64 token ids and timesteps."""
        generator = torch.Generator("cpu").manual_seed(seed)
        return tuple(self._example(name, rows, generator) for name in self.inputs)

    def _example(self, name: str, rows: int, generator: torch.Generator) -> Tensor:
        shape = (rows, *self.inputs[name]) if self.has_rows(name) else self.inputs[name]
        if name == "input_ids":
            return torch.randint(0, self.vocabulary, shape, generator=generator)
        if name == "timestep":
            return torch.randint(1, 1000, shape, generator=generator)
        return torch.randn(shape, generator=generator)


def graphs(bundle: ModelBundle, size: tuple[int, int] | None, rows_max: int) -> tuple[list[Graph], tuple[int, int]]:
    """The networks of `bundle` and the image size (height, width) in pixels, by default the UNet's own.

    The size is fixed in the graphs, so a size that does not survive the UNet's halvings must not get that far:
    it would fail inside a skip connection. Raises `InputError` for it.
    """
    unet, vae, text = bundle.unet, bundle.vae, bundle.text_encoder
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    own = unet.config.sample_size
    height, width = size or tuple(scale * n for n in ((own, own) if isinstance(own, int) else own))
    halvings = len(unet.config.block_out_channels) - 1
    multiple = scale * 2**halvings
    if height % multiple or width % multiple or min(height, width) < multiple:
        raise InputError(
            f"export: size {height}x{width} is not made of multiples of {multiple} = {scale} x 2^{halvings}; "
            "choose another height and width"
        )
    latents = (unet.config.in_channels, height // scale, width // scale)
    tokens, vocabulary = bundle.tokenizer.model_max_length, len(bundle.tokenizer)
    embeddings = (tokens, unet.config.cross_attention_dim)
    unet_inputs = {"sample": latents, "timestep": (1,), "encoder_hidden_states": embeddings}
    # A decoder's memory grows with pixels times rows, so 64 images at once would not fit where the export runs.
    few = min(rows_max, 8)
    parts = [
        ("text_encoder", TextEncoderGraph(text), {"input_ids": (tokens,)}, "last_hidden_state", rows_max),
        ("unet", UnetGraph(unet), unet_inputs, "out_sample", rows_max),
        ("vae_decoder", VaeDecoderGraph(vae), {"latent_sample": latents}, "sample", few),
        ("vae_encoder", VaeEncoderGraph(vae), {"sample": (3, height, width)}, "latent_parameters", few),
    ]
    return [Graph(p, m.eval(), inputs, out, vocabulary, rows) for p, m, inputs, out, rows in parts], (height, width)
