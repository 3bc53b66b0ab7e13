"""Puts FP8 (e4m3) products and convolutions into a UNet: weights rounded once, activations at each call.

A product rounds each token by its own largest value: a token's numbers then depend on no other token, so images do not
depend on the batch that they are in. Weights have a scale for each output channel, as the product takes scales of rows on
both sides. A 3 x 3 convolution mixes tokens, so its input has one scale for all: that of the norm before it, which bounds
its own output (`fp8.norm_scale`), writes e4m3 itself, and needs no calibration.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from dive_fast.types import InputError, shown
from dive_fast.unet import kernel_modules as ours
from dive_fast.unet.kernels import AppliedKernels, Change, Decision, Workload, children, odd_resnet, sizes
from dive_kernels import fp8

PARTS = ("products", "convolutions")
MULTIPLE = 16  # numbers that torch._scaled_mm takes at a time, of both channels


class Fp8Product(nn.Module):
    """A linear layer [..., K] -> [..., N], or a 1 x 1 convolution [R, K, h, w] -> [R, N, h, w], with an e4m3 weight.

    An input in e4m3 has `input_scale`.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, impl: str, input_scale: float = 1.0) -> None:
        super().__init__()
        self.images, self.dtype = isinstance(layer, nn.Conv2d), layer.weight.dtype
        self.impl, self.input_scale, self.bias = impl, input_scale, layer.bias
        weight = layer.weight.detach().flatten(1)
        scale = fp8.largest_scale(weight, (1,))
        self.register_buffer("weight", fp8.quantised(weight, scale))
        self.register_buffer("weight_scale", scale.T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.permute(0, 2, 3, 1) if self.images else x
        rows = tokens.reshape(-1, tokens.shape[-1])
        if x.dtype == fp8.E4M3:
            scale = torch.full((len(rows), 1), self.input_scale, device=x.device)
        else:
            scale = fp8.largest_scale(rows, (1,))
            rows = fp8.quantised(rows, scale)
        out = fp8.product(rows, self.weight, scale, self.weight_scale, self.dtype, impl=self.impl)
        out = out if self.bias is None else out + self.bias
        out = out.reshape(*tokens.shape[:-1], -1)
        return out.permute(0, 3, 1, 2) if self.images else out


class Fp8Convolution(nn.Module):
    """A 3 x 3 convolution of e4m3 images [R, C, h, w] with the scale `input_scale` -> [R, N, h, w]."""

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d, impl: str, input_scale: float) -> None:
        super().__init__()
        self.dtype, self.impl = layer.weight.dtype, impl
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        scale = fp8.largest_scale(weight, (1, 2, 3))
        bias = scale.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        self.register_buffer("weight", fp8.quantised(weight, scale))
        self.register_buffer("scale", scale.flatten() * input_scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return fp8.convolution(x, self.weight, self.scale, self.bias, self.dtype, impl=self.impl)


def use_fp8(
    module: nn.Module, *, parts: Sequence[str] = PARTS, impl: str = "auto", workload: Workload | None = None
) -> AppliedKernels:
    """Puts FP8 into the transformers' products and the resnets' 3 x 3 convolutions of `module`'s UNet, in place.

    After `use_kernels`, if that is used. A convolution stays as it is where cuDNN cannot compute it ("auto"), the report
    says why; "reference" emulates both, "library" requires torch's and cuDNN's kernels. The image size is `workload`'s.
    There are no gradients. Raises `InputError`, before any change, for a module without a UNet or with FP8 already, and for
    layers that cannot run `impl`.
    """
    if impl not in fp8.IMPLS:
        raise InputError(f"use_fp8: impl {shown(impl)} is unknown; choose one of {', '.join(fp8.IMPLS)}")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise InputError(f"use_fp8: part {shown(unknown[0])} is unknown; choose of {', '.join(PARTS)}")
    if any(isinstance(part, (Fp8Product, Fp8Convolution)) for part in module.modules()):
        raise InputError(f"use_fp8: {type(module).__name__} has FP8 layers already; restore() it first")
    unets = [part for part in module.modules() if isinstance(part, UNet2DConditionModel)]
    if not unets:
        raise InputError(
            f"use_fp8: {type(module).__name__} holds no UNet2DConditionModel of diffusers; give it the UNet"
        )
    choices = _Choices(impl, parts)
    for unet in unets:
        choices.add(unet, workload or Workload())
    if choices.problems:
        raise InputError(f"use_fp8: impl {impl!r} does not fit {'; '.join(choices.problems)}; use impl 'auto'")
    applied = AppliedKernels(tuple(choices.changes), choices.decisions)
    applied.apply()
    return applied


def fp8_layers(applied: AppliedKernels) -> str:
    """One line: which layers are FP8, and why others are not."""
    lines = []
    for part in PARTS:
        found = {decision: count for decision, count in applied.decisions.items() if decision.op == f"fp8 {part}"}
        left: Counter[str] = Counter()
        for decision in (one for one in found if one.impl is None):
            left[decision.why] += found[decision]
        lines.append(f"{sum(found.values()) - left.total()} {part}")
        lines += [f"{count} {part} not: {why}" for why, count in left.items()]
    return f"in FP8: {'; '.join(lines)}"


class _Choices:
    """Chooses the layers, and collects the changes."""

    def __init__(self, impl: str, parts: Sequence[str]) -> None:
        self.impl, self.parts = impl, parts
        self.changes: list[Change] = []
        self.decisions: Counter[Decision] = Counter()
        self.problems: list[str] = []

    def add(self, unet: Any, workload: Workload) -> None:
        size = sizes(unet, workload.size)
        for name, owner, attribute, layer in children(unet):
            if "products" in self.parts and isinstance(layer, Transformer2DModel):
                self._transformer(name, layer, size(name))
            if "convolutions" in self.parts and isinstance(layer, ResnetBlock2D):
                self._resnet(name, owner, attribute, layer, size(name))

    def _transformer(self, name: str, layer: Any, size: tuple[int, int]) -> None:
        for inner, owner, attribute, part in children(layer):
            if not isinstance(part, (nn.Linear, nn.Conv2d)):
                continue
            if isinstance(owner, ours.KernelGEGLU):
                # As a product of its own it would write both halves: what e4m3 units save, the kernel saves in bytes.
                self._count("products", part, None, "our GEGLU kernel computes it in half precision")
            elif self._choose("products", f"{name}.{inner}", part, _misfits(part)):
                scale, norm = 1.0, layer.norm
                if part is layer.proj_in and isinstance(norm, ours.KernelNorm):
                    scale = _scale(norm, size)
                    self._change(layer, "norm", ours.replacement(ours.KernelNorm, norm, scale=scale))
                self._change(owner, attribute, Fp8Product(part, self.impl, scale))

    def _resnet(self, name: str, owner: Any, attribute: str, layer: Any, size: tuple[int, int]) -> None:
        impls, scales = [*getattr(layer, "impls", (None, None))], [0.0, 0.0]
        for i in (0, 1):
            norm, conv = getattr(layer, f"norm{i + 1}"), getattr(layer, f"conv{i + 1}")
            reasons = odd_resnet(layer) or _misfits(conv)
            if not reasons and self.impl != "reference" and (self.impl == "library" or conv.weight.is_cuda):
                reasons = fp8.why_no_convolution(conv.weight.device, conv.weight.shape)
            if self._choose("convolutions", f"{name}.conv{i + 1}", conv, reasons):
                impls[i], scales[i] = impls[i] or "auto", _scale(norm, size)
                self._change(layer, f"conv{i + 1}", Fp8Convolution(conv, self.impl, scales[i]))
        if any(scales):
            own = {"impls": tuple(impls), "scales": tuple(scale or None for scale in scales)}
            self._change(owner, attribute, ours.replacement(ours.KernelResnet, layer, **own))

    def _choose(self, part: str, name: str, layer: Any, reasons: list[str]) -> bool:
        """Whether a layer becomes FP8; counts the decision."""
        if reasons and self.impl != "auto":
            self.problems.append(f"{name} ({', '.join(reasons)})")
            return False
        self._count(part, layer, None if reasons else self.impl, ", ".join(reasons) or "asked for")
        return not reasons

    def _count(self, part: str, layer: Any, impl: str | None, why: str) -> None:
        outer, inner = layer.weight.shape[:2]
        self.decisions[Decision(f"fp8 {part}", f"{inner} to {outer}", impl, why)] += 1

    def _change(self, owner: Any, name: str, new: Any) -> None:
        self.changes.append(Change(owner, name, getattr(owner, name), new))


def _misfits(layer: Any) -> list[str]:
    """Every reason why a layer, as it is built, cannot be FP8."""
    traits = {
        f"it is a {type(layer).__name__}": type(layer) not in (nn.Linear, nn.Conv2d),
        f"its channels {tuple(layer.weight.shape[:2])} are no multiples of {MULTIPLE}": any(
            channels % MULTIPLE for channels in layer.weight.shape[:2]
        ),
    }
    return [trait for trait, there in traits.items() if there]


def _scale(norm: nn.GroupNorm, size: tuple[int, int]) -> float:
    height, width = size
    return fp8.norm_scale(norm.weight, norm.bias, norm.num_channels // norm.num_groups * height * width)
