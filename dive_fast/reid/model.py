"""Two-stream embedding networks: one stem per modality, a shared trunk, pooling and a BNNeck."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dive_fast.types import InputError

Backbone = Literal["pocket", "resnet50"]
Pooling = Literal["gem", "avg"]


@dataclass(frozen=True)
class ModelConfig:
    """`height` x `width` input pixels; `pooling` of each of `stripes` horizontal bands (1: the whole body).

    `backbone` "pocket" (0.4 M parameters, trains on a CPU) or "resnet50" (last stride 1, as AGW). `weights` is a local
    folder of a transformers ResNet for "resnet50"; None starts from random weights.
    """

    backbone: Backbone = "pocket"
    height: int = 96
    width: int = 48
    pooling: Pooling = "gem"
    stripes: int = 3
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            raise InputError(f"backbone must be one of {sorted(BACKBONES)}, got {self.backbone!r}")
        if self.pooling not in ("gem", "avg"):
            raise InputError(f"pooling must be 'gem' or 'avg', got {self.pooling!r}")
        if min(self.height, self.width) < 32:
            raise InputError(f"images must be at least 32x32 pixels, got {self.height}x{self.width}")
        if not 1 <= self.stripes <= self.height // 16:
            raise InputError(f"stripes must be 1..{self.height // 16} at height {self.height}, got {self.stripes}")
        if self.weights is not None and self.backbone != "resnet50":
            raise InputError(f"weights are for backbone 'resnet50', not {self.backbone!r}")


class ReidModel(nn.Module):
    """Images of either modality to identity embeddings.

    Training follows the BNNeck (Luo et al., CVPRW 2019): the triplet loss sees the features before the batch norm, the
    classifier those after it; retrieval uses the latter at unit length.
    """

    def __init__(self, config: ModelConfig, classes: int):
        super().__init__()
        self.visible, self.infrared, self.trunk, channels = BACKBONES[config.backbone](config)
        self.pool = Pool(config.pooling, config.stripes)
        width = channels * config.stripes
        self.neck = nn.BatchNorm1d(width)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        """float [B, 3, H, W] and bool [B] to features before the neck [B, D] and logits [B, classes]."""
        features = self._pooled(images, infrared)
        return features, self.classifier(self.neck(features))

    def embed(self, images: Tensor, infrared: Tensor) -> Tensor:
        """float [B, 3, H, W] and bool [B] to unit embeddings [B, D]."""
        return F.normalize(self.neck(self._pooled(images, infrared)))

    def _pooled(self, images: Tensor, infrared: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions of a CPU are faster so
        rows = torch.cat([(~infrared).nonzero()[:, 0], infrared.nonzero()[:, 0]])
        split = int((~infrared).sum())
        parts = []
        if split:
            parts.append(self.visible(images[rows[:split]]))
        if split < len(images):
            parts.append(self.infrared(images[rows[split:]]))
        features = self.pool(self.trunk(torch.cat(parts)))
        return features[torch.argsort(rows)]


class Pool(nn.Module):
    """[B, C, H, W] to [B, C * stripes]: average or generalised mean (GeM, exponent learned, arXiv:1711.02512)."""

    def __init__(self, kind: Pooling, stripes: int):
        super().__init__()
        self.stripes = stripes
        self.exponent = nn.Parameter(torch.tensor(3.0)) if kind == "gem" else None

    def forward(self, maps: Tensor) -> Tensor:
        if self.exponent is not None:
            maps = maps.clamp(min=1e-6) ** self.exponent
        pooled = F.adaptive_avg_pool2d(maps, (self.stripes, 1))
        if self.exponent is not None:
            pooled = pooled ** (1 / self.exponent)
        return pooled.flatten(1)


def _conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps + self.second(self.first(maps)))


Parts = tuple[nn.Module, nn.Module, nn.Module, int]  # visible stem, infrared stem, trunk, channels


def _pocket(config: ModelConfig) -> Parts:
    """Strides 2, 4, 8 and 96 channels: small enough that a CPU thread trains it in a minute."""
    visible, infrared = _conv(3, 24, 2), _conv(3, 24, 2)
    trunk = nn.Sequential(_conv(24, 48, 2), _Residual(48), _conv(48, 96, 2), _Residual(96))
    return visible, infrared, trunk, 96


def _resnet50(config: ModelConfig) -> Parts:
    from transformers import ResNetConfig, ResNetModel

    if config.weights is None:
        net = ResNetModel(ResNetConfig())
    elif not (Path(config.weights) / "config.json").is_file():
        raise InputError(f"weights: {config.weights} is not a folder of a transformers ResNet (no config.json)")
    else:
        net = ResNetModel.from_pretrained(config.weights, local_files_only=True)
    shape = (net.config.embedding_size, *net.config.hidden_sizes, *net.config.depths)
    if net.config.layer_type != "bottleneck" or shape != (64, 256, 512, 1024, 2048, 3, 4, 6, 3):
        raise InputError(f"weights: {config.weights} is not a ResNet-50 (its widths and depths are {shape})")
    last = net.encoder.stages[-1].layers[0]
    for module in last.modules():  # finer maps at the end help retrieval (Luo et al., CVPRW 2019)
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
    trunk = nn.Sequential(*(layer for stage in net.encoder.stages for layer in stage.layers))
    return net.embedder, copy.deepcopy(net.embedder), trunk, net.config.hidden_sizes[-1]


BACKBONES: dict[str, Callable[[ModelConfig], Parts]] = {"pocket": _pocket, "resnet50": _resnet50}
