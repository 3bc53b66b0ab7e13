"""Two-stream embedding networks: one stem per modality, a shared trunk, pooling and a BNNeck."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dive_fast.reid.models.backbones import BACKBONES
from dive_fast.reid.models.config import ModelConfig, Pooling


class ReidModel(nn.Module):
    """Embeds images of either modality.

    Training follows the BNNeck (Luo et al., CVPRW 2019): the triplet loss sees the features before the batch norm, the
    classifier those after it; retrieval uses the latter at unit length. The neck's bias is fixed at 0, and the classifier
    has none. If a batch lacks a modality, that stem gets no gradient (`None`, not 0): DistributedDataParallel then needs
    `find_unused_parameters=True`.

    `augment.normalise` normalises the images, whatever the backbone's weights were trained on. Under autocast stems and
    trunk run in half precision, pooling, neck and classifier in float32: GeM's powers and sums leave float16's range, and
    the losses compare small differences.
    """

    def __init__(self, config: ModelConfig, classes: int):
        super().__init__()
        backbone = BACKBONES[config.backbone]
        self.visible, self.infrared, self.trunk, channels = backbone.build(config)
        self.pool: nn.Module
        if backbone.patch is None:
            self.pool = Pool(config.pooling, config.stripes)
        else:
            grid = config.height // backbone.patch, config.width // backbone.patch
            self.pool = TokenPool(config.pooling, config.stripes, grid)
        width = channels * config.stripes
        self.neck = nn.BatchNorm1d(width)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, images: Tensor, infrared: Tensor) -> tuple[Tensor, Tensor]:
        """Maps float [B, 3, H, W] and bool [B] to features before the neck [B, D] and logits [B, classes]."""
        features = self._pooled(images, infrared)
        with torch.autocast(features.device.type, enabled=False):
            return features, self.classifier(self.neck(features))

    def embed(self, images: Tensor, infrared: Tensor) -> Tensor:
        """Maps float [B, 3, H, W] and bool [B] to unit embeddings [B, D]."""
        features = self._pooled(images, infrared)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.neck(features))

    def _pooled(self, images: Tensor, infrared: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)  # faster on a CPU
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


LARGEST = 6.0  # exponent: above it the power of the smallest clamped value leaves float32, and gradients are NaN


class Pool(nn.Module):
    """Pools [B, C, H, W] to [B, C * stripes]: average, or GeM (arXiv:1711.02512) with an exponent learned from 3."""

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
    """Pools [B, 1 + h * w, D] to [B, D * stripes]: the class token (first), or the average of a `grid` of patches."""

    def __init__(self, kind: Pooling, stripes: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.patches = None if kind == "cls" else Pool(kind, stripes)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.patches is None:
            return tokens[:, 0]
        return self.patches(tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid))
