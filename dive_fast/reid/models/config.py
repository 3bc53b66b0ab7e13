"""Settings of the ReID network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dive_fast.reid.models.backbones import BACKBONES
from dive_fast.settings import AtLeast, OneOf, PositiveInt, Settings
from dive_fast.types import InputError

Pooling = Literal["gem", "avg", "cls"]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The embedding network and the size of its images.

    AGW's model is "resnet50" with `nonlocal_blocks`, pooling "gem" and 1 stripe.
    """

    backbone: Annotated[str, OneOf(BACKBONES)] = "pocket"
    """Backbone; the pocket ones train on a CPU, the others take pretrained weights."""
    height: Annotated[int, AtLeast(32)] = 96
    """Image height in pixels."""
    width: Annotated[int, AtLeast(32)] = 48
    """Image width in pixels."""
    pooling: Pooling = "gem"
    """Pooling of features: gem or avg of convolutional maps, cls (class token) or avg of a transformer's patches."""
    stripes: PositiveInt = 3
    """Horizontal bands that are pooled separately; 1 pools the whole body."""
    weights: str | None = None
    """Pretrained weights, a local path: a transformers folder of a ResNet, ViT or CLIP, or torchvision's resnet50 file."""
    nonlocal_blocks: bool = False
    """Add AGW's non-local blocks to a convolutional backbone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        backbone = BACKBONES[self.backbone]
        patch, named = backbone.patch, f"backbone {self.backbone!r}"
        allowed = ("gem", "avg") if patch is None else ("cls", "avg")
        if self.pooling not in allowed:
            raise InputError(f"pooling of {named} must be {allowed[0]!r} or {allowed[1]!r}, got {self.pooling!r}")
        if patch and (self.height % patch or self.width % patch):
            size = f"{self.height}x{self.width}"
            raise InputError(f"{named} needs height and width in multiples of {patch} pixels, got {size}")
        rows = self.height // (patch or 16)
        if not 1 <= self.stripes <= rows:
            raise InputError(f"stripes must be within 1..{rows} at height {self.height}, got {self.stripes}")
        if self.pooling == "cls" and self.stripes != 1:
            raise InputError(f"pooling 'cls' needs 1 stripe, got stripes {self.stripes}")
        if self.nonlocal_blocks and patch:
            raise InputError(f"nonlocal_blocks need a convolutional backbone, got {named}")
        if self.weights is not None and not backbone.pretrained:
            names = ", ".join(name for name, row in BACKBONES.items() if row.pretrained)
            raise InputError(f"weights need one of the backbones {names}, got {self.backbone!r}")
