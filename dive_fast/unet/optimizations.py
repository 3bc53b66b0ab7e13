"""Exact graph optimizations of a UNet. Each one changes a copy of the modules, and results by rounding only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)

# The time embedding as a table, the layers before the first cross-attention once per image (K/V cache only), no division
# by 1.0, one projection for queries, keys and values.
OPTIMIZATIONS = ("time_table", "shared_prefix", "unit_scale", "fused_qkv")


def copied(module: M, change: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> M:
    """Copies the modules; parameters and buffers become `change` of the originals', by default the same tensors.

    Layers of the copy can then be replaced without a second set of weights in memory.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        changed = change(parameter.data)
        same = changed is parameter.data or changed.data_ptr() == parameter.data_ptr()
        memo[id(parameter)] = parameter if same else nn.Parameter(changed, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = change(buffer)
    return copy.deepcopy(module, memo)


class Columns(nn.Module):
    """x [R, T] -> its columns start to stop, in place of a projection whose results a table holds."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.start : self.stop]


@torch.no_grad()
def use_time_table(unet: Any, timesteps: int) -> Tensor:
    """Replaces, in place, every resnet's time projection by columns of a table [timesteps, T], which it returns.

    Row t holds what the resnets of `unet`, one after the other, add at timestep t.
    """
    resnets = [module for module in unet.modules() if getattr(module, "time_emb_proj", None) is not None]
    weight = unet.conv_in.weight
    embedding = time_embedding(unet, torch.arange(timesteps, device=weight.device), weight.dtype)
    table = torch.cat([resnet.time_emb_proj(resnet.nonlinearity(embedding)) for resnet in resnets], dim=1)
    start = 0
    for resnet in resnets:
        stop = start + resnet.time_emb_proj.out_features
        resnet.time_emb_proj, resnet.skip_time_act = Columns(start, stop), True
        start = stop
    del unet.time_embedding
    return table


def time_embedding(unet: Any, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
    """Timesteps int64 [N] -> the resnets' time embedding, `dtype` [N, E], as in UNet2DConditionModel.forward."""
    # As in diffusers, the sinusoids are float32 for weights of any type.
    embedding: Tensor = unet.time_embedding(unet.time_proj(timesteps).to(dtype), None)
    return embedding if unet.time_embed_act is None else unet.time_embed_act(embedding)


@torch.no_grad()
def fuse_qkv(unet: Any) -> None:
    """Fuses, in place, the three projections of every self-attention of `unet` into one layer `to_qkv`."""
    from diffusers.models.attention_processor import FusedAttnProcessor2_0

    for name, module in unet.named_modules():
        if name.endswith(".attn1"):
            module.fuse_projections()
            module.set_processor(FusedAttnProcessor2_0())
            del module.to_q, module.to_k, module.to_v


class _UnitDivision(TorchFunctionMode):
    """Skips divisions by 1: x / 1.0 is x, bit for bit."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        division = func in (torch.Tensor.__truediv__, torch.Tensor.div, torch.div, torch.true_divide)
        if (
            division
            and not kwargs
            and isinstance(args[1], (int, float))
            and args[1] == 1
            and args[0].is_floating_point()
        ):
            return args[0]
        return func(*args, **(kwargs or {}))


class WithoutUnitScale(nn.Module):
    """`network` without its divisions by 1, with which diffusers' resnets and attentions end."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with _UnitDivision():
            return self.network(*inputs, **named)
