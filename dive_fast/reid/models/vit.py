"""Vision transformers as backbones: a patch embedding per modality, one shared encoder (transformers' layers)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dive_fast.io import read_json
from dive_fast.reid.data.dataset import DEVIATION, MEAN
from dive_fast.reid.models.weights import folder_model, transformers
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.reid.models.convolutional import Parts
    from dive_fast.reid.models.model import ModelConfig

# What the published weights expect where their folder has no preprocessor_config.json: mean and deviation, pixels in 0..1.
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
FORM = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "patch_size",
    "num_channels",
    "hidden_act",
)


@dataclass(frozen=True)
class Sizes:
    """`width` of a token, `depth` in layers, attention `heads`, `hidden` width of the MLPs, side of a `patch` in pixels."""

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int

    def form(self) -> dict[str, int]:
        """The same in transformers' terms."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads,
            "intermediate_size": self.hidden,
            "patch_size": self.patch,
        }


BASE = Sizes(width=768, depth=12, heads=12, hidden=3072, patch=16)  # ViT-B/16
POCKET = Sizes(width=96, depth=3, heads=4, hidden=192, patch=8)


class Patches(nn.Module):
    """Images [B, 3, H, W] to a token a patch, row by row: [B, H/p * W/p, D]."""

    def __init__(self, projection: nn.Conv2d):
        super().__init__()
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Patch tokens [B, N, D] to [B, 1 + N, D]: the class token in front, learned positions, attention layers.

    `positions` [1 + N, D] are those of one image size; `before` and `after` are the norms around the `layers`.
    """

    def __init__(self, token: Tensor, positions: Tensor, before: nn.Module, layers: nn.ModuleList, after: nn.Module):
        super().__init__()
        self.token = nn.Parameter(token.detach().reshape(1, 1, -1).clone())
        self.positions = nn.Parameter(positions.detach()[None].clone())
        self.before, self.layers, self.after = before, layers, after

    def forward(self, patches: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(patches), -1, -1), patches], 1) + self.positions
        tokens = self.before(tokens)
        for layer in self.layers:
            tokens = layer(tokens, attention_mask=None)
        return self.after(tokens)


def vit(config: ModelConfig, sizes: Sizes) -> Parts:
    """A ViT (Dosovitskiy et al., ICLR 2021); `config.weights` is a transformers folder of a ViT of these `sizes`."""
    library = transformers()
    form = library.ViTConfig(**sizes.form())
    if config.weights is None:
        net = library.ViTModel(form, add_pooling_layer=False)
    else:
        name, fields = f"ViT with patches of {sizes.patch}", (*FORM, "qkv_bias")
        net = folder_model(library.ViTModel, form, config.weights, name=name, fields=fields, add_pooling_layer=False)
    embeddings = net.embeddings
    projection = embeddings.patch_embeddings.projection
    positions = _positions(embeddings.position_embeddings[0], form, config, sizes)
    encoder = Encoder(embeddings.cls_token, positions, nn.Identity(), net.layers, net.layernorm)
    return *_stems(projection, config.weights, HALF), encoder, sizes.width


def clip(config: ModelConfig, sizes: Sizes) -> Parts:
    """CLIP's image encoder (Radford et al., ICML 2021) ahead of its projection.

    `config.weights` is a transformers folder of CLIP, or of its vision model alone, with OpenAI's activation.
    """
    library = transformers()
    form = library.CLIPVisionConfig(**sizes.form())
    if config.weights is None:
        net = library.CLIPVisionModel(form)
    else:
        name = f"CLIP vision model with patches of {sizes.patch}"
        net = folder_model(library.CLIPVisionModel, form, config.weights, name=name, fields=FORM, kinds=("clip",))
    embeddings = net.embeddings
    positions = _positions(embeddings.position_embedding.weight, form, config, sizes)
    encoder = Encoder(embeddings.class_embedding, positions, net.pre_layrnorm, net.encoder.layers, net.post_layernorm)
    return *_stems(embeddings.patch_embedding, config.weights, CLIP), encoder, sizes.width


def _positions(positions: Tensor, form: Any, config: ModelConfig, sizes: Sizes) -> Tensor:
    """The positions of `form.image_size` (pixels: a side, or height and width) at the size of `config`."""
    height, width = [form.image_size] * 2 if isinstance(form.image_size, int) else form.image_size
    grids = [(h // sizes.patch, w // sizes.patch) for h, w in ((height, width), (config.height, config.width))]
    return resize_positions(positions, *grids)


def resize_positions(positions: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Position embeddings [1 + h * w, D] of a `grid` h x w to those of a `target` grid, bicubic; the class token's stays."""
    maps = positions[1:].T.unflatten(1, grid)[None]  # [1, D, h, w]
    maps = F.interpolate(maps, target, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], maps[0].flatten(1).T])


def _stems(
    projection: nn.Conv2d, weights: str | None, usual: tuple[Sequence[float], Sequence[float]]
) -> tuple[Patches, Patches]:
    """A patch embedding per modality, of images that are normalised as ImageNet's whatever the weights expect."""
    expected = (MEAN.flatten(), DEVIATION.flatten()) if weights is None else _normalisation(Path(weights), usual)
    projection = renormalised(projection, *expected)
    return Patches(projection), Patches(copy.deepcopy(projection))


def _normalisation(folder: Path, usual: tuple[Sequence[float], Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [3] each, that the weights of `folder` expect of pixels in 0..1."""
    file = folder / "preprocessor_config.json"
    record = read_json(file, "weights") if file.is_file() else {"image_mean": usual[0], "image_std": usual[1]}
    try:
        mean, deviation = torch.tensor([record["image_mean"], record["image_std"]], dtype=torch.float32).reshape(2, 3)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"weights: {file} must hold image_mean and image_std, three numbers each") from error
    if not (torch.isfinite(mean).all() and (deviation > 0).all() and torch.isfinite(deviation).all()):
        raise InputError(f"weights: {file} must hold finite image_mean and image_std above 0")
    return mean, deviation


def renormalised(projection: nn.Conv2d, mean: Tensor, deviation: Tensor) -> nn.Conv2d:
    """A patch embedding of images with `mean` and `deviation` [3] as one of `dataset.normalise`'s images, bias included.

    (x d + m - mean) / deviation is what the weights expect of a pixel that `normalise` calls x, with m and d ImageNet's.
    Patches have no padding, so this goes into the convolution: callers need not know what the weights were trained on.
    """
    scale = (DEVIATION.flatten() / deviation).view(1, 3, 1, 1)
    shift = ((MEAN.flatten() - mean) / deviation).view(1, 3, 1, 1)
    new = nn.Conv2d(3, projection.out_channels, projection.kernel_size, projection.stride)  # type: ignore[arg-type]
    with torch.no_grad():
        bias = (projection.weight * shift).sum((1, 2, 3))
        new.bias.copy_(bias if projection.bias is None else bias + projection.bias)  # type: ignore[union-attr]
        new.weight.copy_(projection.weight * scale)
    return new
