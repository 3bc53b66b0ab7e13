"""FLOPs and bytes of a model's networks, counted on meta tensors: no weights, no memory, no time.

The work is the plain network's, as diffusers runs it: every engine is held against the same count, whatever it saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dive_fast.models.tiny_decoder import new_tiny, with_decoder

aten = torch.ops.aten
ATTENTION = aten._scaled_dot_product_flash_attention
ARITHMETIC = {aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm, ATTENTION}


@dataclass(frozen=True)
class OpCount:
    """Of one call: `flops` (2 x multiply-adds), `moved` bytes that matrix products, convolutions and attention read and
    write (all else fused into them, attention's scores never written), `unfused` bytes when every operation writes out.
    """

    flops: int
    moved: int
    unfused: int


class _OpaqueAttention(TorchFunctionMode):
    """Attention as one operation: on meta tensors torch would take it apart and write the scores out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """[B, heads, T, C]; masks, scale and the like change no count."""
    out: Tensor = ATTENTION(query, key, value)[0]
    return out


class _Traffic(TorchDispatchMode):
    """Bytes read and written by every operation that is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = self.unfused = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket is not aten.detach:
            written = out[0] if isinstance(out, tuple) else out
            size = sum(x.nbytes for x in tree_leaves((args, kwargs, written)) if isinstance(x, Tensor))
            self.unfused += size
            self.moved += size if func.overloadpacket in ARITHMETIC else 0
        return out


@torch.no_grad()
def count(call: Callable[[], object]) -> OpCount:
    """The work of `call`, which must compute on meta tensors."""
    traffic, flops = _Traffic(), FlopCounterMode(display=False)
    with _OpaqueAttention(), flops, traffic:
        call()
    return OpCount(flops.get_total_flops(), traffic.moved, traffic.unfused)


class ModelOpCounts:
    """The work of the calls of one model, in one precision, for latents `shape` (C, h, w) and prompts of `tokens` tokens.

    `text` may be None where its configuration is not known: prompts then count nothing. `tiny` is the width of a tiny
    decoder in the place of the autoencoder's own.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text: Any,
        shape: tuple[int, int, int],
        tokens: int,
        dtype: torch.dtype,
        tiny: int | None = None,
    ) -> None:
        """`unet` and `vae` are diffusers' configurations, `text` transformers'."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        self._shape, self._tokens, self._dtype = shape, tokens, dtype
        self._width = unet["cross_attention_dim"]
        self._counted: dict[tuple[str, int], OpCount] = {}
        with torch.device("meta"):
            self._unet, self._vae = (
                nn.Module.to(network.from_config(dict(config)), dtype).eval()
                for network, config in ((UNet2DConditionModel, unet), (AutoencoderKL, vae))
            )
            if tiny is not None:
                self._vae = nn.Module.to(with_decoder(self._vae, new_tiny(self._vae, tiny).decoder), dtype)
            self._text = None if text is None else CLIPTextModel(text).to(dtype).eval()

    def unet(self, rows: int) -> OpCount:
        """A UNet call of `rows` rows."""
        sample, hidden = self._meta(rows, *self._shape), self._meta(rows, self._tokens, self._width)
        step = torch.zeros(1, dtype=torch.int64, device="meta")
        return self._once("unet", rows, lambda: self._unet(sample, step, hidden, return_dict=False))

    def decode(self, images: int) -> OpCount:
        """A decoder call of `images` images."""
        latents = self._meta(images, *self._shape)
        return self._once("decode", images, lambda: self._vae.decode(latents, return_dict=False))

    def encode(self, prompts: int) -> OpCount:
        """The text encoder for `prompts` prompts."""
        if self._text is None:
            return OpCount(0, 0, 0)
        text, ids = self._text, torch.zeros((prompts, self._tokens), dtype=torch.int64, device="meta")
        return self._once("encode", prompts, lambda: text(ids))

    def gflop(self) -> dict[str, float]:
        """Of a UNet row, a decoded image and a prompt; the rest is multiples."""
        works = {"UNet row": self.unet(1), "decoded image": self.decode(1), "prompt": self.encode(1)}
        return {name: work.flops / 1e9 for name, work in works.items()}

    def _once(self, what: str, size: int, call: Callable[[], object]) -> OpCount:
        """Counting a large network takes a second."""
        if (what, size) not in self._counted:
            self._counted[what, size] = count(call)
        return self._counted[what, size]

    def _meta(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device="meta")
