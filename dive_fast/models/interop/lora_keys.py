"""The names that LoRA trainers give to one and the same tensor, read as (linear, what it is).

| layout | a key |
|---|---|
| diffusers | `unet.LINEAR.lora_A.weight`, before `unet.LINEAR.lora.down.weight` |
| diffusers' first, DiVE's | `down_blocks.0...attn1.processor.to_q_lora.down.weight`, with or without `unet.` |
| PEFT | `base_model.model.LINEAR.lora_A.weight`, or `.lora_A.NAME.weight` |
| kohya | `lora_unet_LINEAR_WITH_UNDERSCORES.lora_down.weight`, `.lora_up.weight`, `.alpha` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

A, B, ALPHA = "A", "B", "alpha"
KOHYA = "lora_unet_"
_PREFIXES = ("base_model.model.", "unet.")
_ENDINGS = [
    (re.compile(r"\.lora_A(?:\.[^.]+)?\.weight$"), A),
    (re.compile(r"\.lora_B(?:\.[^.]+)?\.weight$"), B),
    (re.compile(r"(?:(?:[._]lora|\.lora_linear_layer)\.down|\.lora_down)\.weight$"), A),
    (re.compile(r"(?:(?:[._]lora|\.lora_linear_layer)\.up|\.lora_up)\.weight$"), B),
    (re.compile(r"(?:[._]lora)?\.alpha$"), ALPHA),
]
# Parts of LoRA's relatives (DoRA, LoHa, ...); with one of them, A and B alone would be another change of the weight.
_OTHER = re.compile(
    r"\.(dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?|lora_mid\.weight|lora_[AB](?:\.\w+)?\.bias"
    r"|diff(?:_b)?|(?:hada|lokr|oft)_\w+)$"
)
_FORM = " as "
_KINDS = [  # what a linear outside the UNet's attention belongs to, for people
    (re.compile(r"^(text_|lora_te)|text_model|text_encoder"), "text encoder"),
    (re.compile(r"[._]ff[._]"), "feed-forward layers"),
    (re.compile(r"[._]proj_(in|out)$"), "projections around attention"),
    (re.compile(r"conv|resnets|emb|samplers"), "convolutions and embeddings"),
]


@dataclass(frozen=True)
class Part:
    """One tensor of a LoRA: the linear that it changes, as diffusers names it, and what it is: `A`, `B`, `ALPHA`, or else
    the end of its name."""

    linear: str
    kind: str


def mangled(linear: str) -> str:
    """kohya's name of a linear of the UNet."""
    return KOHYA + linear.replace(".", "_")


def parts(keys: Iterable[str], linears: Iterable[str]) -> dict[str, Part | None]:
    """What each key is; None for a key that is of no LoRA. `linears` are the UNet's, which kohya's names are undone by.

    A linear that is none of `linears` keeps a name of its own.
    """
    unmangled = {mangled(linear): linear for linear in linears}
    return {key: _part(key, unmangled) for key in keys}


def _part(key: str, unmangled: Mapping[str, str]) -> Part | None:
    for pattern, kind in _ENDINGS:
        found = pattern.search(key)
        if found and found.start():
            return Part(_linear(key[: found.start()], unmangled), kind)
    other = _OTHER.search(key)
    return Part(_linear(key[: other.start()], unmangled), other[1]) if other and other.start() else None


def _linear(name: str, unmangled: Mapping[str, str]) -> str:
    if name in unmangled:
        return unmangled[name]
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    name = name.replace(".processor.", ".")
    return name + ".0" if name.endswith(".to_out") else name


def is_lora(keys: Iterable[str]) -> bool:
    """Whether any of the keys is one of a LoRA or of its relatives (LoHa, LoKr, OFT), in whatever layout."""
    return any(part is not None and part.kind != ALPHA for part in parts(keys, ()).values())


def in_form(linear: str, kinds: Iterable[str]) -> str:
    """The name of a linear whose change has parts that LoRA has not, with the first of them."""
    return f"{linear}{_FORM}{min(kind for kind in kinds if kind not in (A, B, ALPHA))}"


def kind_of(name: str) -> str:
    """What a linear that no adapter changes, or one `in_form`, belongs to, in words."""
    if _FORM in name:
        return "attention in another form than LoRA"
    return next((words for pattern, words in _KINDS if pattern.search(name)), "other layers")
