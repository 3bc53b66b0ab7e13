"""Vision transformers as backbones: a patch embedding per modality, one shared encoder with transformers' layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dive_fast.json_files import read_json
from dive_fast.reid.data.augment import MEAN, STD
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.models.convolutional import Parts
from dive_fast.reid.models.weights import folder_model, transformers
from dive_fast.types import InputError

Sizes = Mapping[str, int]  # of a transformer, as transformers' configs call them

# Mean and standard deviation that published weights expect without a preprocessor_config.json, pixels in 0..1.
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
FIELDS = (*SIZES, "num_channels", "hidden_act")
BASE = dict(zip(SIZES, (768, 12, 12, 3072, 16), strict=True))  # ViT-B/16
POCKET = dict(zip(SIZES, (96, 3, 4, 192, 8), strict=True))


class Patches(nn.Module):
    """Maps images [B, 3, H, W] to a token per patch, row by row: [B, H/p * W/p, D]."""

    def __init__(self, projection: nn.Conv2d):
        super().__init__()
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        return self.projection(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """Maps patch tokens [B, N, D] to [B, 1 + N, D]: class token in front, learned positions, attention layers.

    `positions` [1 + N, D] belong to one image size; `before` and `after` are the norms around the `layers`.
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
    form = library.ViTConfig(**sizes)
    if config.weights is None:
        net = library.ViTModel(form, add_pooling_layer=False)
    else:
        name, fields = f"ViT with patches of {sizes['patch_size']}", (*FIELDS, "qkv_bias")
        net = folder_model(library.ViTModel, form, config.weights, name=name, fields=fields, add_pooling_layer=False)
    embeddings = net.embeddings
    positions = _positions(embeddings.position_embeddings[0], form, config)
    encoder = Encoder(embeddings.cls_token, positions, nn.Identity(), net.layers, net.layernorm)
    return *_stems(embeddings.patch_embeddings.projection, config.weights, HALF), encoder, sizes["hidden_size"]


def clip(config: ModelConfig, sizes: Sizes) -> Parts:
    """CLIP's image encoder (Radford et al., ICML 2021) without its projection.

    `config.weights` is a transformers folder of CLIP, or of its vision model alone, with OpenAI's activation.
    """
    library = transformers()
    form = library.CLIPVisionConfig(**sizes)
    if config.weights is None:
        net = library.CLIPVisionModel(form)
    else:
        name = f"CLIP vision model with patches of {sizes['patch_size']}"
        net = folder_model(library.CLIPVisionModel, form, config.weights, name=name, fields=FIELDS, kinds=("clip",))
    embeddings = net.embeddings
    positions = _positions(embeddings.position_embedding.weight, form, config)
    encoder = Encoder(embeddings.class_embedding, positions, net.pre_layrnorm, net.encoder.layers, net.post_layernorm)
    return *_stems(embeddings.patch_embedding, config.weights, CLIP), encoder, sizes["hidden_size"]


pocket_vit = partial(vit, sizes=POCKET)
vit_b16 = partial(vit, sizes=BASE)
clip_vit_b16 = partial(clip, sizes=BASE)


def _positions(positions: Tensor, form: Any, config: ModelConfig) -> Tensor:
    """The positions of `form.image_size` (pixels: a side, or height and width) at the size of `config`."""
    height, width = [form.image_size] * 2 if isinstance(form.image_size, int) else form.image_size
    patch = form.patch_size
    grids = [(h // patch, w // patch) for h, w in ((height, width), (config.height, config.width))]
    return resize_positions(positions, *grids)


def resize_positions(positions: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resizes position embeddings [1 + h * w, D] of a `grid` h x w to a `target` grid, bicubic; the class token's stays."""
    maps = positions[1:].T.unflatten(1, grid)[None]  # [1, D, h, w]
    maps = F.interpolate(maps, target, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], maps[0].flatten(1).T])


def _stems(
    projection: nn.Conv2d, weights: str | None, usual: tuple[Sequence[float], Sequence[float]]
) -> tuple[Patches, Patches]:
    """A patch embedding per modality, for images normalised by ImageNet's statistics whatever the weights expect."""
    expected = (MEAN.flatten(), STD.flatten()) if weights is None else _normalisation(Path(weights), usual)
    projection = renormalised(projection, *expected)
    return Patches(projection), Patches(copy.deepcopy(projection))


def _normalisation(folder: Path, usual: tuple[Sequence[float], Sequence[float]]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, [3] each, that the weights of `folder` expect, pixels in 0..1."""
    file = folder / "preprocessor_config.json"
    record = read_json(file, "weights") if file.is_file() else {"image_mean": usual[0], "image_std": usual[1]}
    try:
        mean, std = torch.tensor([record["image_mean"], record["image_std"]], dtype=torch.float32).reshape(2, 3)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"weights: {file} must hold image_mean and image_std, three numbers each") from error
    if not (torch.isfinite(mean).all() and (std > 0).all() and torch.isfinite(std).all()):
        raise InputError(f"weights: {file} must hold finite image_mean and image_std above 0")
    return mean, std


def renormalised(projection: nn.Conv2d, mean: Tensor, std: Tensor) -> nn.Conv2d:
    """Converts a patch embedding of images with `mean` and `std` [3] to one of `augment.normalise`'s images.

    A pixel that `normalise` maps to x is (x s + m - mean) / std to the weights, with ImageNet's m and s. Patches have no
    padding, so the convolution and its bias absorb this.
    """
    scale = (STD.flatten() / std).view(1, 3, 1, 1)
    shift = ((MEAN.flatten() - mean) / std).view(1, 3, 1, 1)
    new = nn.Conv2d(3, projection.out_channels, projection.kernel_size, projection.stride)  # type: ignore[arg-type]
    with torch.no_grad():
        bias = (projection.weight * shift).sum((1, 2, 3))
        new.bias.copy_(bias if projection.bias is None else bias + projection.bias)  # type: ignore[union-attr]
        new.weight.copy_(projection.weight * scale)
    return new
