"""Convolutional backbones: the pocket net and ResNet-50, with AGW's non-local blocks as an option."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.models.weights import folder_model, read_state, resnet50_state, transformers
from dive_fast.types import InputError

Parts = tuple[nn.Module, nn.Module, nn.Module, int]  # visible stem, infrared stem, trunk, channels

AGW_BLOCKS = (0, 2, 3, 0)  # non-local blocks after the last blocks of each of ResNet-50's stages
RESNET_FIELDS = (
    "embedding_size",
    "hidden_sizes",
    "depths",
    "layer_type",
    "hidden_act",
    "downsample_in_first_stage",
    "downsample_in_bottleneck",
)


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


class NonLocal(nn.Module):
    """Dot-product non-local block (Wang et al., CVPR 2018, arXiv:1711.07971) as AGW uses it: [B, C, H, W] to the same.

    At each of the N = H * W positions i it adds `out(sum over j of (query_i . key_j) value_j / N)`; query, key and value are
    1 x 1 convolutions to C / 2 channels (the paper's width; AGW's released code has one channel). `out` ends in a batch norm
    of weight and bias 0, so a new block is the identity and keeps pretrained features.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = channels // 2
        self.query, self.key, self.value = (nn.Conv2d(channels, inner, 1) for _ in range(3))
        norm = nn.BatchNorm2d(channels)
        self.out = nn.Sequential(nn.Conv2d(inner, channels, 1), norm)
        nn.init.zeros_(norm.weight)
        nn.init.zeros_(norm.bias)

    def forward(self, maps: Tensor) -> Tensor:
        query, key, value = (conv(maps).flatten(2) for conv in (self.query, self.key, self.value))  # [B, C/2, N]
        inner, positions = query.shape[1:]
        with torch.autocast(maps.device.type, enabled=False):  # cubic in the maps: float16 overflows
            query, key, value = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (query, key, value))
            key = key.transpose(1, 2) / positions
            # Without a softmax the products are associative: the smaller matrix goes in the middle.
            mixed = value @ (key @ query) if positions < inner else (value @ key) @ query
            return maps + self.out(mixed.unflatten(2, maps.shape[2:]))


def pocket(config: ModelConfig) -> Parts:
    """Strides 2, 4, 8 and 96 channels: a CPU thread trains it in a minute; a non-local block may end each of two stages."""
    visible, infrared = _conv(3, 24, 2), _conv(3, 24, 2)
    layers = [_conv(24, 48, 2), _Residual(48), _conv(48, 96, 2), _Residual(96)]
    if config.nonlocal_blocks:  # created last: the other layers get equal weights with and without
        layers = [*layers[:2], NonLocal(48), *layers[2:], NonLocal(96)]
    return visible, infrared, nn.Sequential(*layers), 96


def resnet50(config: ModelConfig) -> Parts:
    """ResNet-50 with its last stride removed; random weights, a transformers folder, or a torchvision state dict."""
    net = _resnet50(config.weights)
    for module in net.encoder.stages[-1].layers[0].modules():
        if isinstance(module, nn.Conv2d):  # finer maps at the end help retrieval (Luo et al., CVPRW 2019)
            module.stride = (1, 1)
    layers: list[nn.Module] = []
    for stage, channels, blocks in zip(net.encoder.stages, net.config.hidden_sizes, AGW_BLOCKS, strict=True):
        plain = len(stage.layers) - (blocks if config.nonlocal_blocks else 0)
        for number, layer in enumerate(stage.layers):
            layers += [layer] if number < plain else [layer, NonLocal(channels)]
    return net.embedder, copy.deepcopy(net.embedder), nn.Sequential(*layers), net.config.hidden_sizes[-1]


def _resnet50(weights: str | None) -> Any:
    """transformers' ResNetModel in ResNet-50's sizes."""
    library = transformers()
    config = library.ResNetConfig()
    if weights is None:
        return library.ResNetModel(config)
    if Path(weights).is_dir():
        return folder_model(library.ResNetModel, config, weights, name="ResNet-50", fields=RESNET_FIELDS)
    if not Path(weights).is_file():
        raise InputError(f"weights: {weights} does not exist; give a transformers folder or torchvision's file")
    net = library.ResNetModel(config)
    net.load_state_dict(resnet50_state(read_state(Path(weights)), net.state_dict(), weights))
    return net
