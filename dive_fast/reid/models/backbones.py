"""The backbones: one row each. A row's module is imported when the backbone is built."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Backbone:
    """A backbone's builder and what its weights and images must be.

    `builder` is "module:function"; the function takes a `ModelConfig` and returns the visible stem, the infrared stem, the
    trunk and the trunk's channels. `pretrained` says whether `ModelConfig.weights` may be given. `patch` is the side of a
    transformer's patches in pixels: its trunk returns tokens [B, 1 + patches, D], the class token first. A convolutional
    trunk has no patch and returns maps [B, C, h, w].
    """

    builder: str
    patch: int | None = None
    pretrained: bool = False

    def build(self, config: Any) -> tuple[Any, Any, Any, int]:
        module, _, function = self.builder.partition(":")
        parts: tuple[Any, Any, Any, int] = getattr(importlib.import_module(module), function)(config)
        return parts


BACKBONES = {
    "pocket": Backbone("dive_fast.reid.models.convolutional:pocket"),
    "pocket-vit": Backbone("dive_fast.reid.models.vit:pocket_vit", patch=8),
    "resnet50": Backbone("dive_fast.reid.models.convolutional:resnet50", pretrained=True),
    "vit-b16": Backbone("dive_fast.reid.models.vit:vit_b16", patch=16, pretrained=True),
    "clip-vit-b16": Backbone("dive_fast.reid.models.vit:clip_vit_b16", patch=16, pretrained=True),
}
