"""Two-stream embedding networks: one stem per modality, a shared trunk, pooling and a BNNeck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dive_fast.reid.models.backbones import BACKBONES
from dive_fast.types import InputError

Backbone = Literal["pocket", "pocket-vit", "resnet50", "vit-b16", "clip-vit-b16"]
Pooling = Literal["gem", "avg", "cls"]


@dataclass(frozen=True)
class ModelConfig:
    """`height` x `width` input pixels; `pooling` of each of `stripes` horizontal bands (1: the whole body).

    `backbone` "pocket" (0.4 M parameters, trains on a CPU) or "resnet50" (last stride 1, as AGW), both pooled by "gem" or
    "avg"; or a vision transformer, pooled by "cls" (its class token, of one stripe) or "avg" (its patches): "pocket-vit"
    (tiny), "vit-b16", "clip-vit-b16". `nonlocal_blocks` adds AGW's attention to the convolutional ones: "resnet50" with
    them, "gem" and 1 stripe is AGW's model. `weights`: a local folder of a transformers ResNet, ViT or CLIP, or the file
    of torchvision's resnet50 (.pth, .safetensors); None starts from random weights.
    """

    backbone: Backbone = "pocket"
    height: int = 96
    width: int = 48
    pooling: Pooling = "gem"
    stripes: int = 3
    weights: str | None = None
    nonlocal_blocks: bool = False

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise InputError(f"backbone must be one of {sorted(BACKBONES)}, got {self.backbone!r}")
        patch = BACKBONES[self.backbone].patch
        allowed = ("gem", "avg") if patch is None else ("cls", "avg")
        if self.pooling not in allowed:
            reason = " (GeM pools the maps of convolutions)" if self.pooling == "gem" else ""
            raise InputError(f"pooling for backbone {self.backbone!r} must be {allowed[0]!r} or {allowed[1]!r}, "
                             f"got {self.pooling!r}{reason}")  # fmt: skip
        if min(self.height, self.width) < 32:
            raise InputError(f"images must be at least 32x32 pixels, got {self.height}x{self.width}")
        if patch and (self.height % patch or self.width % patch):
            raise InputError(f"backbone {self.backbone!r} needs height and width in multiples of {patch} pixels, "
                             f"got {self.height}x{self.width}")  # fmt: skip
        rows = self.height // (patch or 16)
        if not 1 <= self.stripes <= rows:
            raise InputError(f"stripes must be 1..{rows} at height {self.height}, got {self.stripes}")
        if self.pooling == "cls" and self.stripes != 1:
            raise InputError(f"pooling 'cls' takes one token for the whole body: set stripes to 1 (now {self.stripes}) or "
                             "pooling to 'avg'")  # fmt: skip
        if self.nonlocal_blocks and patch:
            raise InputError(
                f"nonlocal_blocks are for convolutional backbones; {self.backbone!r} attends in every layer"
            )
        if self.weights is not None and not BACKBONES[self.backbone].pretrained:
            raise InputError(f"weights are for backbones {sorted(n for n, b in BACKBONES.items() if b.pretrained)}, "
                             f"not {self.backbone!r}")  # fmt: skip


class ReidModel(nn.Module):
    """Images of either modality to identity embeddings.

    Training follows the BNNeck (Luo et al., CVPRW 2019): the triplet loss sees the features before the batch norm, the
    classifier those after it; retrieval uses the latter at unit length. The neck's bias is fixed at 0, and the classifier
    has none. A batch may lack a modality, whose stem then gets no gradient at all (`None`, not 0):
    DistributedDataParallel needs `find_unused_parameters=True` for such batches.

    Images are normalised as `dataset.normalise` does, whatever the backbone's weights were trained on. Under autocast
    stems and trunk run in half precision, pooling, neck and classifier in float32: powers and sums of GeM leave the range
    of float16, and the losses compare small differences.
    """

    def __init__(self, config: ModelConfig, classes: int):
        super().__init__()
        builder = BACKBONES[config.backbone]
        self.visible, self.infrared, self.trunk, channels = builder.build(config)
        self.pool: nn.Module = (
            Pool(config.pooling, config.stripes)
            if builder.patch is None
            else TokenPool(
                config.pooling, config.stripes, (config.height // builder.patch, config.width // builder.patch)
            )
        )
        width = channels * config.stripes
        self.neck = nn.BatchNorm1d(width)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        """float [B, 3, H, W] and bool [B] to features before the neck [B, D] and logits [B, classes]."""
        features = self._pooled(images, infrared)
        with torch.autocast(features.device.type, enabled=False):
            return features, self.classifier(self.neck(features))

    def embed(self, images: Tensor, infrared: Tensor) -> Tensor:
        """float [B, 3, H, W] and bool [B] to unit embeddings [B, D]."""
        features = self._pooled(images, infrared)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.neck(features))

    def _pooled(self, images: Tensor, infrared: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions of a CPU are faster so
        rows = torch.cat([(~infrared).nonzero()[:, 0], infrared.nonzero()[:, 0]])
        split = int((~infrared).sum())
        parts = []
        if split:
            parts.append(self.visible(images[rows[:split]]))
        if split < len(images):
            parts.append(self.infrared(images[rows[split:]]))
        maps = self.trunk(torch.cat(parts))
        with torch.autocast(maps.device.type, enabled=False):
            features = self.pool(maps.to(torch.promote_types(maps.dtype, torch.float32)))
        return features[torch.argsort(rows)]


LARGEST = 6.0  # exponent: beyond, the smallest clamped value to its power leaves float32, and gradients are NaN


class Pool(nn.Module):
    """[B, C, H, W] to [B, C * stripes]: average or generalised mean (GeM, arXiv:1711.02512; exponent learned, from 3)."""

    def __init__(self, kind: Pooling, stripes: int):
        super().__init__()
        self.stripes = stripes
        self.exponent = nn.Parameter(torch.tensor(3.0)) if kind == "gem" else None

    def forward(self, maps: Tensor) -> Tensor:
        if self.exponent is None:
            return F.adaptive_avg_pool2d(maps, (self.stripes, 1)).flatten(1)
        exponent = self.exponent.clamp(max=LARGEST)
        pooled = F.adaptive_avg_pool2d(maps.clamp(min=1e-6) ** exponent, (self.stripes, 1))
        return (pooled ** (1 / exponent)).flatten(1)


class TokenPool(nn.Module):
    """[B, 1 + h * w, D], class token first, to [B, D * stripes]: that token, or the average of a `grid` h x w of patches."""

    def __init__(self, kind: Pooling, stripes: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.patches = None if kind == "cls" else Pool(kind, stripes)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.patches is None:
            return tokens[:, 0]
        return self.patches(tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid))
