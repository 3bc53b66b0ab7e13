"""The backbones by name: what makes the stems and the trunk of a `ReidModel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dive_fast.reid.models.convolutional import Parts, pocket, resnet50
from dive_fast.reid.models.vit import BASE, POCKET, clip, vit

if TYPE_CHECKING:
    from dive_fast.reid.models.model import ModelConfig


@dataclass(frozen=True)
class Builder:
    """`build` makes random weights, or those of `config.weights` where `pretrained` says that there can be any.

    `patch` is the side of a transformer's patches in pixels, whose trunk gives tokens [B, 1 + patches, D], the class
    token first; None is a convolutional net, whose trunk gives maps [B, C, h, w].
    """

    build: Callable[[ModelConfig], Parts]
    patch: int | None = None
    pretrained: bool = False


BACKBONES: dict[str, Builder] = {
    "pocket": Builder(pocket),
    "pocket-vit": Builder(partial(vit, sizes=POCKET), patch=POCKET.patch),
    "resnet50": Builder(resnet50, pretrained=True),
    "vit-b16": Builder(partial(vit, sizes=BASE), patch=BASE.patch, pretrained=True),
    "clip-vit-b16": Builder(partial(clip, sizes=BASE), patch=BASE.patch, pretrained=True),
}
