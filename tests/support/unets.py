"""The tiny UNet in several builds."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.tiny import _unet

BUILDS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "plain block first": {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
    "two blocks a transformer, linear": {"transformer_layers_per_block": 2, "use_linear_projection": True},
    "resnets scaled by the time": {"resnet_time_scale_shift": "scale_shift", "time_embedding_act_fn": "silu"},
    "cross-attention in the middle only": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
    },
}


def unet(**changes: Any) -> Any:
    """The tiny UNet in float64, rebuilt with `changes`."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = {name: value for name, value in _unet().config.items() if not name.startswith("_")}
        return UNet2DConditionModel.from_config({**given, **changes}).eval().double()
