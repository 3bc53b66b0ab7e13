"""Puts the kernels into a diffusers UNet or VAE, and takes them out again.

    with use_kernels(unet) as applied:
        print(applied.report)
        ...

All choices are made before the first layer changes. Layers are replaced in place by `kernel_modules` on the same weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from dive_fast.types import InputError
from dive_fast.unet import kernel_modules as ours
from dive_fast.unet.graphs import CachedUnetGraph, KVCacheProcessor
from dive_kernels import geglu, groupnorm_silu, table
from dive_kernels.attention import api as attention
from dive_kernels.cross_attention import api as cross_attention
from dive_kernels.run import capability

OPS = ("cross_attention", "attention", "groupnorm_silu", "geglu")
IMPLS = ("auto", "reference", "fused")
# What a layer runs without a kernel op, by its name in the table of measurements.
LIBRARY = {"cross_attention": "sdpa", "attention": "sdpa", "groupnorm_silu": "eager", "geglu": "eager"}


@dataclass(frozen=True)
class Workload:
    """The calls that `auto` chooses for: rows of a call, (height, width) of the latents, tokens of a prompt.

    `compiled`: torch.compile follows, so inductor compiles the layers that are not replaced.
    """

    rows: int = 32
    size: tuple[int, int] | None = None  # the model's own
    keys: int = 77
    compiled: bool = False


@dataclass(frozen=True)
class Decision:
    """What layers of one kind and shape run, and why. `impl` None: what they ran before."""

    op: str
    what: str
    impl: str | None
    why: str


@dataclass(frozen=True)
class Change:
    """An attribute to replace: a module in its parent, or a processor."""

    owner: Any
    name: str
    old: Any
    new: Any


@dataclass
class AppliedKernels:
    """Replaced layers, until `restore()` or the end of a `with`."""

    changes: Sequence[Change]
    decisions: Counter[Decision]

    @property
    def report(self) -> str:
        """One line for each kind and shape of layer: what it runs, why, how many there are."""
        return "\n".join(
            f"{found.op}, {found.what}: {found.impl or 'left as it is'} ({found.why}), {count} x"
            for found, count in self.decisions.items()
        )

    @property
    def summary(self) -> str:
        """Counts layers by implementation: "attention fused 3 of 16, ..."."""
        total, counts = Counter[str](), Counter[tuple[str, str | None]]()
        for found, count in self.decisions.items():
            total[found.op] += count
            counts[found.op, found.impl] += count
        lines = [f"{op} {impl} {count} of {total[op]}" for (op, impl), count in counts.items() if impl]
        return ", ".join(lines) or "none"

    def then(self, other: AppliedKernels) -> AppliedKernels:
        """Both, where `other` was applied after these."""
        return AppliedKernels((*self.changes, *other.changes), self.decisions + other.decisions)

    def apply(self) -> None:
        """Puts the replacements in, as `use_kernels` does, after a `restore`."""
        for change in self.changes:
            setattr(change.owner, change.name, change.new)

    def restore(self) -> None:
        """Puts the original modules and processors back."""
        for change in reversed(self.changes):
            setattr(change.owner, change.name, change.old)

    def __enter__(self) -> AppliedKernels:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


def use_kernels(
    module: nn.Module, *, impl: str = "auto", ops: Sequence[str] = OPS, workload: Workload | None = None
) -> AppliedKernels:
    """Puts `ops` into the diffusers UNet2DConditionModel or AutoencoderKL that `module` is or holds, in place.

    "auto" chooses, for each layer, the fastest implementation on the module's GPU for `workload` by the table of
    measurements (`dive_kernels.table`), which also names what is taken unmeasured. A layer stays as it is where that is no
    op of ours, and on a CPU; transformers of a channels-last module then end channels last. "reference" and "fused" put the
    op into every layer of its kind. Weights are shared and state_dict stays the same. The module must be on its final
    device in its final dtype; "fused" GroupNorm reads channels-last images only.
    There are no gradients.
    Raises `InputError`, before any change, for a module that holds neither or has kernels already, for unknown names, and
    with every reason why a layer cannot run `impl`.
    """
    if impl not in IMPLS:
        raise InputError(f"use_kernels: impl {impl!r} is unknown; choose one of {', '.join(IMPLS)}")
    unknown = [op for op in ops if op not in OPS]
    if unknown:
        raise InputError(f"use_kernels: ops names {unknown}, which is no op; choose from {', '.join(OPS)}")
    models = [model for model in module.modules() if isinstance(model, (UNet2DConditionModel, AutoencoderKL))]
    if not models:
        raise InputError(
            f"use_kernels: {type(module).__name__} holds no UNet2DConditionModel or AutoencoderKL of diffusers; "
            "give it the UNet or the VAE"
        )
    if any(
        isinstance(part, ours.KINDS) or isinstance(_processor(part), ours.KernelAttention) for part in module.modules()
    ):
        raise InputError(f"use_kernels: {type(module).__name__} has kernels already; restore() it first")
    choices = _Choices(impl, ops, workload or Workload())
    for model in models:
        choices.add(model)
    if choices.problems:
        raise InputError(
            f"use_kernels: impl {impl!r} does not fit {'; '.join(choices.problems)}; leave these ops out, or use impl 'auto'"
        )
    for graph in module.modules():
        if isinstance(graph, CachedUnetGraph):
            choices.stop_gathering(graph)
    applied = AppliedKernels(tuple(choices.changes), choices.decisions)
    applied.apply()
    return applied


@dataclass(frozen=True)
class Site:
    """An op at one layer, with the table's key and work for it.

    `unfit` are reasons against the op itself, `why_not_fused` those against its kernel. `candidates` are the
    implementations that can run there, for an op with more than one kernel.
    """

    op: str
    layer: str
    what: str
    key: dict[str, int]
    work: int
    unfit: Sequence[str]
    why_not_fused: Callable[[], list[str]]
    candidates: Callable[[], list[str]] | None = None


class _Choices:
    """Chooses an implementation for every layer of the models that are added, and collects the changes."""

    def __init__(self, impl: str, ops: Sequence[str], workload: Workload) -> None:
        self.impl, self.ops, self.workload = impl, ops, workload
        self.changes: list[Change] = []
        self.decisions: Counter[Decision] = Counter()
        self.problems: list[str] = []

    def add(self, model: Any) -> None:
        parameter = next(model.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._size = sizes(model, self.workload.size)
        skips = _skips(model)
        before = len(self.changes)
        for name, owner, attribute, layer in children(model):
            new = None
            if type(layer) is ResnetBlock2D:
                new = self._resnet(name, layer, skips.get(layer, 0))
            elif type(layer) is nn.GroupNorm and not isinstance(owner, ResnetBlock2D):
                new = self._norm(name, owner, attribute, layer)
            elif type(layer) is GEGLU:
                new = self._geglu(name, layer)
            elif type(layer) is Attention:
                self._attention(name, layer)
            if new is not None:
                self._change(owner, attribute, new)
        norms = any(isinstance(change.new, (ours.KernelResnet, ours.KernelNorm)) for change in self.changes[before:])
        if norms or _channels_last(model):
            self._keep_layout(model)

    def stop_gathering(self, graph: CachedUnetGraph) -> None:
        new = {id(change.owner): change.new for change in self.changes if change.name == "processor"}
        layers = [layer for layer in graph.unet.modules() if isinstance(_processor(layer), KVCacheProcessor)]
        if all(id(layer) in new for layer in layers):
            self._change(graph, "gathers", False)

    def _change(self, owner: Any, name: str, new: Any) -> None:
        self.changes.append(Change(owner, name, getattr(owner, name), new))

    def _keep_layout(self, model: nn.Module) -> None:
        """The blocks around norms: no concatenation on the way up before a norm of ours, no copy to channels-first."""
        kinds: dict[type[nn.Module], type[nn.Module]] = {
            UpBlock2D: ours.KernelUpBlock,
            CrossAttnUpBlock2D: ours.KernelCrossAttnUpBlock,
            Transformer2DModel: ours.KernelTransformer,
        }
        for _, owner, attribute, layer in children(model):
            if type(layer) in kinds:
                self._change(owner, attribute, ours.replacement(kinds[type(layer)], layer))

    def _resnet(self, name: str, layer: Any, skip: int) -> nn.Module | None:
        odd = odd_resnet(layer)
        shifted = layer.time_emb_proj is not None
        first = self._choose_norm(f"{name}.norm1", layer.norm1, True, odd, skip=skip)
        second = self._choose_norm(f"{name}.norm2", layer.norm2, True, odd, shifted=shifted)
        if first is None and second is None:
            return None
        return ours.replacement(ours.KernelResnet, layer, impls=(first, second))

    def _norm(self, name: str, owner: Any, attribute: str, layer: Any) -> nn.Module | None:
        """A norm outside of resnets; at a network's end it takes over the SiLU behind it."""
        silu = attribute == "conv_norm_out" and isinstance(getattr(owner, "conv_act", None), nn.SiLU)
        impl = self._choose_norm(name, layer, silu, [])
        if impl is None:
            return None
        if silu:
            self._change(owner, "conv_act", nn.Identity())
        return ours.replacement(ours.KernelNorm, layer, impl=impl, silu=silu)

    def _choose_norm(
        self, name: str, norm: nn.GroupNorm, silu: bool, odd: list[str], *, skip: int = 0, shifted: bool = False
    ) -> str | None:
        channels, (height, width) = norm.num_channels, self._size(name)
        extras = [f"{skip} of them a skip's"] * bool(skip) + ["time"] * shifted + ["SiLU"] * silu

        def why_not_fused() -> list[str]:
            x = self._tensor(1, channels - skip, 2, 2).contiguous(memory_format=torch.channels_last)
            other = self._tensor(1, skip, 2, 2).contiguous(memory_format=torch.channels_last) if skip else None
            shift = self._tensor(1, channels) if shifted else None
            return groupnorm_silu.why_not_fused(x, norm.weight, norm.bias, skip=other, shift=shift)

        return self._choose(
            Site(
                "groupnorm_silu",
                name,
                ", ".join([f"{channels} channels", *extras, f"{height}x{width}"]),
                {"channels": channels, "skip": skip, "shift": int(shifted), "silu": int(silu)},
                self.workload.rows * channels * height * width,
                odd if norm.affine else [*odd, "it has no weight"],
                why_not_fused,
            )
        )

    def _geglu(self, name: str, layer: Any) -> nn.Module | None:
        plain = type(layer.proj) is nn.Linear
        height, width = self._size(name)
        outer, inner = layer.proj.weight.shape[0] // 2, layer.proj.weight.shape[1]
        impl = self._choose(
            Site(
                "geglu",
                name,
                f"{inner} to {outer}, {height * width} tokens",
                {"inner": inner, "outer": outer},
                self.workload.rows * height * width * outer,
                [] if plain else [f"its projection is a {type(layer.proj).__name__}, not a Linear"],
                lambda: geglu.why_not_fused(self._tensor(1, inner), layer.proj.weight, layer.proj.bias),
            )
        )
        return None if impl is None else ours.replacement(ours.KernelGEGLU, layer, impl=impl)

    def _attention(self, name: str, layer: Any) -> None:
        """Replaces an attention's processor; a cross-attention reads a K/V cache, or the keys of each row."""
        found = layer.processor
        cross = isinstance(found, KVCacheProcessor) or layer.is_cross_attention
        odd = _odd_attention(layer)
        height, width = self._size(name)
        rows, tokens, keys = self.workload.rows, height * width, self.workload.keys if cross else height * width
        channels = layer.to_out[0].weight.shape[1]
        head_dim = channels // layer.heads

        def why_not_fused() -> list[str]:
            x = self._tensor(1, keys, channels)
            if not cross:
                return attention.why_not_fused(x, x, x, layer.heads)
            index = torch.zeros(1, dtype=torch.int64, device=self._device)
            return cross_attention.why_not_fused(x, x, x, index, layer.heads)

        def candidates() -> list[str]:
            query, key = self._tensor(rows, tokens, channels), self._tensor(1 if cross else rows, keys, channels)
            if not cross:
                return [attention.chosen(query, key, key, layer.heads)[0]]
            index = torch.zeros(rows, dtype=torch.int64, device=self._device)
            return [cross_attention.chosen(query, key, key, index, layer.heads)[0]]

        words = f"{layer.heads} heads of {head_dim}, {tokens} tokens"
        impl = self._choose(
            Site(
                "cross_attention" if cross else "attention",
                name,
                f"{words}, {keys} keys" if cross else words,
                {"head_dim": head_dim, **({"keys": keys} if cross else {})},
                rows * tokens * channels if cross else rows * layer.heads * tokens * tokens,
                odd,
                why_not_fused,
                candidates,
            )
        )
        if impl is None:
            return
        if isinstance(found, KVCacheProcessor):
            new: Any = ours.KernelKVCacheAttention(impl, found.start, found.stop)
        else:
            new = (ours.KernelCrossAttention if cross else ours.KernelSelfAttention)(impl)
        self._change(layer, "processor", new)

    def _choose(self, site: Site) -> str | None:
        """Returns the op's implementation for a layer, or None for what it runs now, and counts the decision."""
        if site.op not in self.ops:
            return None
        auto, impl, why = self.impl == "auto", None, ""
        reasons = list(site.unfit)
        if not reasons and self.impl == "fused":
            reasons = site.why_not_fused()
        if reasons and not auto:
            self.problems.append(f"{site.layer} ({site.op}: {', '.join(reasons)})")
            return None
        if not auto:
            impl, why = self.impl, "asked for"
        elif reasons:
            why = ", ".join(reasons)
        else:
            impl, why = fastest(site, self._device, self._dtype, self.workload.compiled)
        self.decisions[Decision(site.op, site.what, impl, why)] += 1
        return impl

    def _tensor(self, *shape: int) -> Tensor:
        return torch.empty(shape, device=self._device, dtype=self._dtype)


def fastest(site: Site, device: torch.device, dtype: torch.dtype, compiled: bool) -> tuple[str | None, str]:
    """Returns the fastest measured implementation for a layer on `device`, or what is taken unmeasured, and why.

    None: the layer as it is.
    """
    if device.type != "cuda":
        return None, f"on {device.type} torch's own is taken"
    chip = capability(device)
    times = table.measured(site.op, chip, dtype, site.key, site.work)
    why_not = site.why_not_fused()
    if times is None:
        why = f"not measured in {str(dtype).removeprefix('torch.')} on compute capability {chip}"
        impl = table.unmeasured(site.op, chip, dtype, not why_not)
        return impl, f"{why}, but it moves fewer bytes" if impl else "; ".join([why, *why_not])
    library = (LIBRARY[site.op], *(["inductor"] if compiled else []))
    able = site.candidates() if site.candidates else [] if why_not else ["fused"]
    offered = dict.fromkeys([*library, *able])
    best = table.fastest(times, tuple(offered), LIBRARY[site.op])
    timed = ", ".join(f"{name} {times[name]:.3g} ms" for name in offered if name in times)
    return (None if best in library else best), "; ".join([f"measured: {timed}", *why_not])


def children(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    for prefix, owner in model.named_modules():
        for attribute, layer in owner.named_children():
            yield f"{prefix}.{attribute}" if prefix else attribute, owner, attribute, layer


def _channels_last(model: nn.Module) -> bool:
    """Whether the weights of the convolutions lie channels last, and not in both orders at once as those of 1 x 1 do."""
    weights = [
        layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
    ]
    return all(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)


def _processor(module: nn.Module) -> Any:
    return module.processor if isinstance(module, Attention) else None


def sizes(model: Any, latents: tuple[int, int] | None) -> Callable[[str], tuple[int, int]]:
    """Returns the (height, width) of a layer's level by the layer's name; a VAE's first level has the image's size."""
    levels, own = len(model.config.block_out_channels), model.config.sample_size
    height, width = (own, own) if isinstance(own, int) else own
    if latents is not None:
        scale = 1 if isinstance(model, UNet2DConditionModel) else 2 ** (levels - 1)
        height, width = (side * scale for side in latents)

    def size(name: str) -> tuple[int, int]:
        parts = name.split(".")
        if parts[0] in ("encoder", "decoder"):
            parts = parts[1:]
        by_block = {"mid_block": levels - 1}
        if parts[0] in ("down_blocks", "up_blocks"):
            number = int(parts[1])
            by_block = {"down_blocks": number, "up_blocks": levels - 1 - number}
        level = by_block.get(parts[0], 0)
        return height // 2**level, width // 2**level

    return size


def _skips(model: Any) -> dict[nn.Module, int]:
    found: dict[nn.Module, int] = {}
    if isinstance(model, UNet2DConditionModel) and model.mid_block is not None:
        channels = model.mid_block.resnets[-1].out_channels
        for block in model.up_blocks:
            for resnet in block.resnets:
                found[resnet], channels = resnet.in_channels - channels, resnet.out_channels
    return found


def odd_resnet(layer: Any) -> list[str]:
    """Lists what a resnet has beyond Stable Diffusion 1.5's."""
    shortcut = layer.conv_shortcut
    traits = {
        "it scales up": layer.upsample is not None,
        "it scales down": layer.downsample is not None,
        # A VAE's resnets say "group", which without a time is the default.
        f"time_embedding_norm {layer.time_embedding_norm}": layer.time_emb_proj is not None
        and layer.time_embedding_norm != "default",
        f"activation {type(layer.nonlinearity).__name__}": not isinstance(layer.nonlinearity, nn.SiLU),
        f"dropout {layer.dropout.p} in training mode": layer.training and layer.dropout.p > 0,
        f"a shortcut of type {type(shortcut).__name__}": shortcut is not None and type(shortcut) is not nn.Conv2d,
        "norms of other types": type(layer.norm1) is not nn.GroupNorm or type(layer.norm2) is not nn.GroupNorm,
    }
    return [trait for trait, there in traits.items() if there]


def _odd_attention(layer: Any) -> list[str]:
    """Lists what an attention has that the ops do not compute."""
    known = (AttnProcessor2_0, FusedAttnProcessor2_0, KVCacheProcessor)
    traits = {
        f"processor {type(layer.processor).__name__}": type(layer.processor) not in known,
        "normalised queries or keys": layer.norm_q is not None or layer.norm_k is not None,
        "normalised prompts": layer.norm_cross is not None,
        "a spatial norm": layer.spatial_norm is not None,
        "added projections": layer.added_kv_proj_dim is not None,
        f"dropout {layer.to_out[1].p} in training mode": layer.training and layer.to_out[1].p > 0,
    }
    return [trait for trait, there in traits.items() if there]
