"""The names that LoRA trainers give to one tensor, read as (linear, part).

| layout | a key |
|---|---|
| diffusers | `unet.LINEAR.lora_A.weight`, before `unet.LINEAR.lora.down.weight` |
| diffusers' first, DiVE's | `down_blocks.0...attn1.processor.to_q_lora.down.weight`, with or without `unet.` |
| PEFT | `base_model.model.LINEAR.lora_A.weight`, or `.lora_A.NAME.weight` |
| kohya | `lora_unet_LINEAR_WITH_UNDERSCORES.lora_down.weight`, `.lora_up.weight`, `.alpha` |

diffusers renames its own older layouts. For kohya's names this module is stricter than diffusers: it looks them up among
the UNet's linears, where diffusers guesses, and it keeps every key, where diffusers stops at an unknown one and keeps one
of several alphas.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

A, B, ALPHA = "A", "B", "alpha"
_PREFIXES = ("base_model.model.", "unet.")
_ENDINGS = {
    A: re.compile(r"\.(lora_A(\.[^.]+)?|lora_down|lora_linear_layer\.down)\.weight$"),
    B: re.compile(r"\.(lora_B(\.[^.]+)?|lora_up|lora_linear_layer\.up)\.weight$"),
    ALPHA: re.compile(r"([._]lora)?\.alpha$"),
}
# Parts of LoRA's relatives (DoRA, LoHa, ...). Beside one of them, A and B alone would change the weight in another way.
_RELATIVE = re.compile(
    r"\.(dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?|lora_mid\.weight|lora_[AB](?:\.\w+)?\.bias"
    r"|diff(?:_b)?|(?:hada|lokr|oft)_\w+)$"
)
_GROUPS = {  # of layers that no adapter changes, for error messages
    "attention in another form than LoRA": re.compile(r" as "),
    "text encoder": re.compile(r"^(text_|lora_te)|text_model|text_encoder"),
    "feed-forward layers": re.compile(r"[._]ff[._]"),
    "projections around attention": re.compile(r"[._]proj_(in|out)$"),
    "convolutions and embeddings": re.compile(r"conv|resnets|emb|samplers"),
    "other layers": re.compile(""),
}


def kohya_name(linear: str) -> str:
    return "lora_unet_" + linear.replace(".", "_")


def split_keys(keys: Iterable[str], linears: Iterable[str]) -> dict[str, tuple[str, str] | None]:
    """Maps each key to its linear, as diffusers names it, and its part: `A`, `B`, `ALPHA` or one of a relative of LoRA.

    A key of no LoRA maps to None. A linear that is none of the UNet's `linears` keeps the file's name.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft

    by_kohya = {kohya_name(linear): linear for linear in linears}

    def split(key: str) -> tuple[str, str] | None:
        (name,) = convert_unet_state_dict_to_peft({key: None})
        for part, pattern in (*_ENDINGS.items(), (None, _RELATIVE)):
            found = pattern.search(name)
            if found and found.start():
                linear = name[: found.start()]
                return by_kohya.get(linear) or _plain(linear), part or found[1]
        return None

    return {key: split(key) for key in keys}


def _plain(linear: str) -> str:
    for prefix in _PREFIXES:
        linear = linear.removeprefix(prefix)
    return linear + ".0" if linear.endswith(".to_out") else linear


def is_lora(keys: Iterable[str]) -> bool:
    """Whether any of the keys is one of a LoRA or of its relatives (LoHa, LoKr, OFT), in whatever layout."""
    return any(split is not None and split[1] != ALPHA for split in split_keys(keys, ()).values())


def summarise(names: Iterable[str]) -> str:
    """Counts layers by group, as "72 of text encoder, 16 of feed-forward layers"."""
    groups = (next(group for group, pattern in _GROUPS.items() if pattern.search(name)) for name in names)
    return ", ".join(f"{count} of {group}" for group, count in Counter(groups).most_common())
