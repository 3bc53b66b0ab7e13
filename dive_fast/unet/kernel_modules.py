"""diffusers' layers with our ops inside. Each takes over the attributes of the layer that it replaces (`replacement`).

`impl` is the op's implementation. There are no gradients. Features of diffusers that Stable Diffusion does not use are
refused: here if they come with a call (masks, FreeU), in `kernels` if they are built in (other resnets).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D, UpBlock2D
from torch import Tensor, nn

from dive_fast.types import InputError
from dive_fast.unet.graphs import KVCache, with_skip
from dive_kernels.attention import attention
from dive_kernels.cross_attention import cross_attention
from dive_kernels.geglu import geglu
from dive_kernels.groupnorm_silu import groupnorm_silu

M = TypeVar("M", bound=nn.Module)


def replacement(kind: type[M], layer: nn.Module, **own: object) -> M:
    """Makes a `kind` that shares the parameters, submodules, hooks and settings of `layer`, with `own` attributes.

    The dictionaries are shared, not copied: state_dict has the same keys and tensors, and a parameter that moves in one
    moves in the other.
    """
    module = kind.__new__(kind)
    module.__dict__.update(layer.__dict__, **own)
    return module


class KernelNorm(nn.GroupNorm):
    """x [R, C, h, w] or [R, C, T] -> the same shape, normalised; then SiLU if `silu`. With `scale` the output is e4m3."""

    impl: str
    silu: bool
    scale: float | None = None

    def forward(self, input: Tensor) -> Tensor:
        x = input.unsqueeze(-1) if input.ndim == 3 else input
        options: Any = {"skip": None, "shift": None, "silu": self.silu, "scale": self.scale, "impl": self.impl}
        out = groupnorm_silu(x, self.weight, self.bias, self.num_groups, self.eps, **options)
        return out.squeeze(-1) if input.ndim == 3 else out


class KernelResnet(ResnetBlock2D):
    """input_tensor [R, C1, h, w], temb [R or 1, T] or None, skip [R, C2, h, w] or None -> [R, C, h, w].

    Reads input and skip without concatenating them. `impls` are those of its two norms; None: diffusers' own. A norm with a
    scale in `scales` writes e4m3.
    """

    impls: tuple[str | None, str | None]
    scales: tuple[float | None, float | None] = (None, None)
    takes_skip = True

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        if skip is not None and (self.impls[0] is None or self.conv_shortcut is None):
            input_tensor, skip = torch.cat([input_tensor, skip], dim=1), None
        shift = self._shift(temb)
        hidden, shift = self._convolved(self._activated(0, self.norm1, input_tensor, skip, None), shift)
        hidden = self.conv2(self.dropout(self._activated(1, self.norm2, hidden, None, shift)))
        return (self._shortcut(input_tensor, skip) + hidden) / self.output_scale_factor

    def _convolved(self, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns what `conv1` makes of x, and the shift of the norm behind it, which takes over the bias.

        cuDNN's convolutions have no bias, and inductor cannot fuse it into our norm: it would be a pass of its own.
        """
        conv = self.conv1
        if shift is None or self.impls[1] is None or conv.bias is None or type(conv) is not nn.Conv2d:
            return conv(x), shift
        hidden = nn.functional.conv2d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
        return hidden, shift + conv.bias

    def _shift(self, temb: Tensor | None) -> Tensor | None:
        """[R or 1, C]: what the time adds to every channel."""
        if self.time_emb_proj is None or temb is None:
            return None
        shift: Tensor = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
        return shift

    def _activated(self, which: int, norm: Any, x: Tensor, skip: Tensor | None, shift: Tensor | None) -> Tensor:
        impl = self.impls[which]
        if impl is None:
            out: Tensor = self.nonlinearity(norm(x if shift is None else x + shift[:, :, None, None]))
            return out
        options: Any = {"skip": skip, "shift": shift, "silu": True, "scale": self.scales[which], "impl": impl}
        return groupnorm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps, **options)

    def _shortcut(self, x: Tensor, skip: Tensor | None) -> Tensor:
        if self.conv_shortcut is None:
            return x
        if skip is None:
            out: Tensor = self.conv_shortcut(x)
            return out
        convolve, weight = nn.functional.conv2d, self.conv_shortcut.weight  # [C, C1 + C2, 1, 1]
        channels = x.shape[1]
        return convolve(x, weight[:, :channels], self.conv_shortcut.bias) + convolve(skip, weight[:, channels:])


class KernelUpBlock(UpBlock2D):
    """UpBlock2D whose resnets read their skips without concatenation."""

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        upsample_size: int | None = None,
    ) -> Tensor:
        _refuse_freeu(self)
        for resnet, skip in zip(self.resnets, reversed(res_hidden_states_tuple), strict=True):
            hidden_states = with_skip(resnet, hidden_states, temb, skip)
        return _upsampled(self, hidden_states, upsample_size)


class KernelCrossAttnUpBlock(CrossAttnUpBlock2D):
    """CrossAttnUpBlock2D whose resnets read their skips without concatenation."""

    def forward(
        self,
        hidden_states: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        temb: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        upsample_size: int | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        _refuse_freeu(self)
        skips = reversed(res_hidden_states_tuple)
        for resnet, transformer, skip in zip(self.resnets, self.attentions, skips, strict=True):
            hidden_states = transformer(
                with_skip(resnet, hidden_states, temb, skip),
                encoder_hidden_states=encoder_hidden_states,
                cross_attention_kwargs=cross_attention_kwargs,
                attention_mask=attention_mask,
                encoder_attention_mask=encoder_attention_mask,
                return_dict=False,
            )[0]
        return _upsampled(self, hidden_states, upsample_size)


class KernelTransformer(Transformer2DModel):
    """Transformer2DModel that returns channels-last images.

    diffusers' copies them to channels-first, which the next norm cannot read and the next convolution would copy back.
    """

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        x = self.proj_out(hidden_states) if self.use_linear_projection else hidden_states  # [R, h w, C]
        x = torch.unflatten(x, 1, (height, width)).permute(0, 3, 1, 2)
        return (x if self.use_linear_projection else self.proj_out(x)) + residual


class KernelGEGLU(GEGLU):
    """hidden_states [..., K] -> [..., N]."""

    impl: str

    def forward(self, hidden_states: Tensor) -> Tensor:
        return geglu(hidden_states, self.proj.weight, self.proj.bias, impl=self.impl)


class KernelAttention:
    """What the attention processors share: AttnProcessor2_0 without masks, around the op."""

    def __init__(self, impl: str) -> None:
        self.impl = impl

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None:
            raise InputError("use_kernels: attention masks are not supported; restore() the module to use one")
        images = hidden_states.ndim == 4
        x = hidden_states.flatten(2).transpose(1, 2) if images else hidden_states  # [R, T, C]
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        x = attn.to_out[1](attn.to_out[0](self.attend(attn, x, encoder_hidden_states)))
        if images:
            x = torch.unflatten(x.transpose(1, 2), 2, hidden_states.shape[2:])
        return (x + hidden_states if attn.residual_connection else x) / attn.rescale_output_factor

    def attend(self, attn: Any, x: Tensor, prompts: Any) -> Tensor:
        """x [R, T, C] -> the input of `to_out`, [R, T, C']."""
        raise NotImplementedError


class KernelSelfAttention(KernelAttention):
    def attend(self, attn: Any, x: Tensor, prompts: None) -> Tensor:
        query, key, value = (
            attn.to_qkv(x).chunk(3, -1) if attn.fused_projections else (attn.to_q(x), attn.to_k(x), attn.to_v(x))
        )
        return attention(query, key, value, attn.heads, impl=self.impl)


class KernelCrossAttention(KernelAttention):
    """Attends to the keys and values of each row's embeddings [R, L, D]."""

    def attend(self, attn: Any, x: Tensor, prompts: Tensor) -> Tensor:
        key, value = (
            attn.to_kv(prompts).chunk(2, -1) if attn.fused_projections else (attn.to_k(prompts), attn.to_v(prompts))
        )
        rows = torch.arange(len(x), device=x.device)
        return cross_attention(attn.to_q(x), key, value, rows, attn.heads, impl=self.impl, validate=False)


class KernelKVCacheAttention(KernelAttention):
    """Attends to columns start to stop of each row's prompt in the K/V cache, without gathering them.

    The index is not checked here, as the host would wait for the GPU at every layer: engines check it before the call.
    """

    def __init__(self, impl: str, start: int, stop: int) -> None:
        super().__init__(impl)
        self.start, self.stop = start, stop

    def attend(self, attn: Any, x: Tensor, prompts: KVCache) -> Tensor:
        key, value = (prompts.kv_bank[:, side, :, self.start : self.stop] for side in (0, 1))
        index = prompts.prompt_index
        return cross_attention(attn.to_q(x), key, value, index, attn.heads, impl=self.impl, validate=False)


def _refuse_freeu(block: Any) -> None:
    if getattr(block, "s1", None):
        raise InputError("use_kernels: FreeU changes skips, which is not supported; disable_freeu() or restore()")


def _upsampled(block: Any, x: Tensor, size: int | None) -> Tensor:
    for upsampler in block.upsamplers or ():
        x = upsampler(x, size)
    return x


KINDS = (KernelNorm, KernelResnet, KernelUpBlock, KernelCrossAttnUpBlock, KernelTransformer, KernelGEGLU)
