"""The UNet's graph variants as plain modules with named tensors: plain, and with a K/V cache of the prompts.

The cache holds the keys and values of each prompt for every cross-attention: `kv_bank` [P, 2, L, sumC], keys first, the
columns of all cross-attentions side by side, sorted by module name (`cross_attentions`). Files call this variant "bank".
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dive_fast.types import InputError
from dive_fast.unet.optimizations import copied, fuse_qkv, time_embedding, use_time_table

TIMESTEPS = 1000  # of diffusers' schedulers, unless their configuration says otherwise
BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D")


class VaeDecoderGraph(nn.Module):
    """latent_sample [B, C, h, w], unscaled -> sample [B, 3, H, W] in about -1..1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: Tensor) -> Tensor:
        image: Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return image


class UnetGraph(nn.Module):
    """sample [R, C, h, w], timestep int64 [1], encoder_hidden_states [R, L, D] -> out_sample [R, C, h, w].

    diffusers' own forward: the reference of every other variant.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class IndexedUnetGraph(UnetGraph):
    """The reference of `CachedUnetGraph`: the plain UNet on a latent and a prompt looked up for each row.

    sample [B, C, h, w], timestep [1], encoder_hidden_states [P, L, D], prompt_index int64 [R], image_index int64 [R]
    (without it, row r belongs to latent r) -> [R, C, h, w].
    """

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        prompt_index: Tensor,
        image_index: Tensor | None = None,
    ) -> Tensor:
        rows = sample if image_index is None else sample[image_index]
        return super().forward(rows, timestep, encoder_hidden_states[prompt_index])


class KVCacheGraph(nn.Module):
    """encoder_hidden_states [P, L, D] -> kv_bank [P, 2, L, sumC] for the cross-attentions of `unet`."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        layers = [module for _, module in cross_attentions(unet)]
        self.keys = nn.ModuleList(layer.to_k for layer in layers)
        self.values = nn.ModuleList(layer.to_v for layer in layers)

    def forward(self, encoder_hidden_states: Tensor) -> Tensor:
        sides = [torch.cat([layer(encoder_hidden_states) for layer in side], -1) for side in (self.keys, self.values)]
        return torch.stack(sides, dim=1)


class ReducedUnetGraph(nn.Module):
    """A UNet with graph `optimizations`; inputs and output as `UnetGraph`.

    The UNet given is not changed. `timesteps` is the number of rows of the time table. Raises `InputError` for a UNet of
    another build than Stable Diffusion 1.5's.
    """

    time_table: Tensor | None  # [timesteps, T]

    def __init__(self, unet: Any, optimizations: tuple[str, ...], timesteps: int) -> None:
        super().__init__()
        found = other_traits(unet)
        if found:
            raise InputError(
                f"export: this UNet has {'; '.join(found)}, unlike Stable Diffusion 1.5's; "
                "export it with --variant plain and without the optimizations time_table and fused_qkv"
            )
        self.unet = copied(unet)
        if "fused_qkv" in optimizations:
            fuse_qkv(self.unet)
        table = use_time_table(self.unet, timesteps) if "time_table" in optimizations else None
        self.register_buffer("time_table", table)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return _pass(self.unet, sample, self._time(sample, timestep), encoder_hidden_states)

    def _time(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """[1, T]: one row for all, as they share the timestep."""
        if self.time_table is None:
            return time_embedding(self.unet, timestep, sample.dtype)
        return self.time_table.index_select(0, timestep)


class KVCache(NamedTuple):
    """What cross-attentions read: keys and values of all prompts [P, 2, L, sumC], and each row's prompt, int64 [R].

    `rows` holds the keys and the values of each row, both [R, L, sumC], for processors that do not gather them themselves.
    """

    kv_bank: Tensor
    prompt_index: Tensor
    rows: tuple[Tensor, Tensor] | None


class CachedUnetGraph(ReducedUnetGraph):
    """sample [R, C, h, w], timestep int64 [1], kv_bank [P, 2, L, sumC], prompt_index int64 [R] -> out_sample [R, C, h, w].

    With "shared_prefix", sample is [B, C, h, w] and the last input is image_index int64 [R], each row's image.
    """

    gathers = True  # keys and values for each row; False where no processor reads them (`kernels.use_kernels`)

    def __init__(self, unet: Any, optimizations: tuple[str, ...], timesteps: int) -> None:
        super().__init__(unet, optimizations, timesteps)
        start = 0
        for _, layer in cross_attentions(self.unet):
            stop = start + layer.to_k.out_features
            layer.set_processor(KVCacheProcessor(start, stop))
            del layer.to_k, layer.to_v
            start = stop

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        kv_bank: Tensor,
        prompt_index: Tensor,
        image_index: Tensor | None = None,
    ) -> Tensor:
        rows = None
        if self.gathers:
            # Gathered from [2P, L, sumC]: splitting the cache of all prompts would copy it.
            sides = kv_bank.flatten(0, 1)
            keys, values = (sides.index_select(0, 2 * prompt_index + side) for side in (0, 1))
            rows = (keys, values)
        cache = KVCache(kv_bank, prompt_index, rows)
        return _pass(self.unet, sample, self._time(sample, timestep), cache, image_index)


class KVCacheProcessor:
    """Cross-attention to each row's cached keys and values, in columns start to stop."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: KVCache,
        attention_mask: None = None,
    ) -> Tensor:
        assert encoder_hidden_states.rows is not None
        keys, values = (side[..., self.start : self.stop] for side in encoder_hidden_states.rows)
        query, key, value = (
            torch.unflatten(x, -1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden_states), keys, values)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value)  # [R, heads, tokens, C / heads]
        out = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return out / attn.rescale_output_factor


def cross_attentions(unet: nn.Module) -> list[tuple[str, Any]]:
    """Name and module of every cross-attention, sorted by name: the order of the cache's columns."""
    return sorted((name, module) for name, module in unet.named_modules() if name.endswith(".attn2"))


def _pass(unet: Any, sample: Tensor, time: Tensor, prompts: Any, image_index: Tensor | None = None) -> Tensor:
    """UNet2DConditionModel.forward with a time embedding [1, T] given; `prompts` goes to the cross-attentions as it is.

    With `image_index` int64 [R] the pass begins with images [B, ...], and rows part at the first cross-attention.
    """
    skips: list[Tensor] = []

    def layer(x: Tensor, resnet: Any, transformer: Any, skip: Tensor | None = None) -> Tensor:
        nonlocal image_index, skips
        x = resnet(x, time) if skip is None else with_skip(resnet, x, time, skip)
        if transformer is None:
            return x
        if image_index is None:
            out: Tensor = transformer(x, prompts, return_dict=False)[0]
            return out
        index, image_index = image_index, None
        skips = [_rows_of(skip, index) for skip in skips]
        return _images_to_rows(transformer, x, prompts, index)

    sample = unet.conv_in(sample)
    skips.append(sample)
    for block in unet.down_blocks:
        for resnet, transformer in _layers(block):
            sample = layer(sample, resnet, transformer)
            skips.append(sample)
        for downsampler in block.downsamplers or ():
            sample = downsampler(sample)
            skips.append(sample)
    for resnet, transformer in _layers(unet.mid_block):
        sample = layer(sample, resnet, transformer)
    for block in unet.up_blocks:
        for resnet, transformer in _layers(block):
            sample = layer(sample, resnet, transformer, skips.pop())
        for upsampler in block.upsamplers or ():
            sample = upsampler(sample)
    out: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))
    return out


def with_skip(resnet: Any, x: Tensor, time: Tensor | None, skip: Tensor) -> Tensor:
    """Runs an up block's resnet on x [R, C1, h, w] and skip [R, C2, h, w], concatenated unless it takes both."""
    takes_both = getattr(resnet, "takes_skip", False)
    out: Tensor = resnet(x, time, skip) if takes_both else resnet(torch.cat([x, skip], dim=1), time)
    return out


def _layers(block: Any) -> Iterator[tuple[Any, Any]]:
    """Yields a block's resnets, each with the transformer behind it or None."""
    return zip_longest(block.resnets, getattr(block, "attentions", ()))


def _images_to_rows(transformer: Any, images: Tensor, prompts: Any, image_index: Tensor) -> Tensor:
    """Transformer2DModel.forward, images [B, C, h, w] -> rows [R, C, h, w], split after the first self-attention."""
    first, *others = transformer.transformer_blocks
    height, width = images.shape[2:]
    x = transformer.norm(images)
    if transformer.use_linear_projection:
        x = transformer.proj_in(x.flatten(2).transpose(1, 2))  # [B, h w, C]
    else:
        x = transformer.proj_in(x).flatten(2).transpose(1, 2)
    x = x + first.attn1(first.norm1(x))
    x, residual = x.index_select(0, image_index), _rows_of(images, image_index)
    x = x + first.attn2(first.norm2(x), encoder_hidden_states=prompts)
    x = x + first.ff(first.norm3(x))
    for block in others:
        x = block(x, encoder_hidden_states=prompts)
    if transformer.use_linear_projection:
        x = transformer.proj_out(x)
    x = torch.unflatten(x, 1, (height, width)).permute(0, 3, 1, 2)
    return residual + (x if transformer.use_linear_projection else transformer.proj_out(x))


def _rows_of(images: Tensor, image_index: Tensor) -> Tensor:
    """images [B, C, h, w] -> rows [R, C, h, w], channels-last if the images are; index_select alone loses that."""
    if images.stride(1) != 1:
        return images.index_select(0, image_index)
    return images.permute(0, 2, 3, 1).index_select(0, image_index).permute(0, 3, 1, 2)


def other_traits(unet: Any) -> list[str]:
    """Every trait of `unet` that `_pass` and `KVCacheProcessor` do not support; none for Stable Diffusion 1.5's build."""
    config = unet.config
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    odd = sorted({type(block).__name__ for block in blocks} - set(BLOCKS))
    attentions = [module for name, module in unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    traits = {
        f"blocks {', '.join(odd)}": bool(odd),
        "no cross-attention": not cross_attentions(unet),
        "center_input_sample": bool(config.center_input_sample),
        "dual_cross_attention": bool(config.dual_cross_attention),
        "only_cross_attention": config.only_cross_attention not in (None, False),
        f"attention_type {config.attention_type}": config.attention_type != "default",
        "resnet_skip_time_act": bool(config.resnet_skip_time_act),
        "normalised attention": any(layer.norm_q is not None or layer.norm_cross for layer in attentions),
    }
    return [trait for trait, there in traits.items() if there]
