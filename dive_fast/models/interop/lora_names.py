"""The names that LoRA trainers give to one tensor, read as (linear, part).

| layout | a key |
|---|---|
| diffusers | `unet.LINEAR.lora_A.weight`, before `unet.LINEAR.lora.down.weight` |
| diffusers' first, DiVE's | `down_blocks.0...attn1.processor.to_q_lora.down.weight`, with or without `unet.` |
| PEFT | `base_model.model.LINEAR.lora_A.weight`, or `.lora_A.NAME.weight` |
| kohya | `lora_unet_LINEAR_WITH_UNDERSCORES.lora_down.weight`, `.lora_up.weight`, `.alpha` |
| LyCORIS | the same after `lycoris_` |

Prefixes of wrappers come in any order and number: of PEFT, `torch.compile`, parallel training, ComfyUI. Linears may also
have the names of Stable Diffusion's first code (`input_blocks_1_1_...`).

diffusers renames its own older layouts. For all names this module is stricter than diffusers: it looks them up among the
UNet's linears, where diffusers guesses, and it keeps every key, where diffusers stops at an unknown one and keeps one of
several alphas. A key that continues a linear's name is a part of that linear, whatever it is called: beside a part that
LoRA does not have, A and B alone would change the weight in another way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

A, B, ALPHA = "A", "B", "alpha"
_WITHIN = r"_orig_mod|module|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module"  # of any module, too
_OF_PEFT = re.compile(rf"((model|{_WITHIN})[._])*base_model[._]")
_AROUND = r"base_model|model|net|pipe|pipeline|state_dict|diffusion_model|unet|lora_unet|lycoris"
_WRAPPERS = re.compile(rf"^(({_AROUND}|{_WITHIN})[._])+", re.IGNORECASE)
_ENDINGS = {
    A: re.compile(r"\.(lora_A(\.[^.]+)?|lora_down|lora_linear_layer\.down)\.weight$"),
    B: re.compile(r"\.(lora_B(\.[^.]+)?|lora_up|lora_linear_layer\.up)\.weight$"),
    ALPHA: re.compile(r"([._]lora)?\.alpha$"),
}
# Parts of LoRA's relatives (DoRA, LoHa, ...) by name, for layers that the UNet's linears do not show.
_RELATIVE = re.compile(
    r"\.(dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?|lora_mid\.weight|lora_[AB](?:\.\w+)?\.bias"
    r"|diff(?:_b)?|scalar|(?:hada|lokr|oft)_\w+)$"
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

    known = _spellings(list(linears))

    def split(key: str) -> tuple[str, str] | None:
        (name,) = convert_unet_state_dict_to_peft({key: None})
        for part, pattern in _ENDINGS.items():
            found = pattern.search(name)
            if found and found.start() and (linear := known.get(_plain(name[: found.start()]))):
                return linear, part
            if found and found.start() and _owner(name, known) is None:
                return name[: found.start()], part
        owner = _owner(name, known)
        found = _RELATIVE.search(name)
        return owner or ((name[: found.start()], found[1]) if found and found.start() else None)

    return {key: split(key) for key in keys}


def _spellings(linears: list[str]) -> dict[str, str]:
    """The linears by each name without dots that a file may give them."""
    plain = {linear.replace(".", "_"): linear for linear in linears}
    first = {_first_name(linear, linears).replace(".", "_"): linear for linear in linears}
    whole = {**first, **plain}
    return {**{name.removesuffix("_0"): linear for name, linear in whole.items() if name.endswith("to_out_0")}, **whole}


def _first_name(linear: str, linears: list[str]) -> str:
    """The name of a linear in Stable Diffusion's first code, which numbers all layers of a side."""
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", linear)
    if found is None:
        return linear.replace("mid_block.attentions.0.", "middle_block.1.")
    numbers = [int(n) for name in linears for n in re.findall(r"^down_blocks\.\d+\.attentions\.(\d+)\.", name)]
    per_block = max(numbers, default=0) + 2  # layers, and a resampler or one layer more
    side, block, layer = found[1], int(found[2]), int(found[3])
    number = block * per_block + layer + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.1.{found[4]}"


def _plain(name: str) -> str:
    """A linear's name without wrappers and dots."""
    return _WRAPPERS.sub("", re.sub(rf"(?<![^.])({_WITHIN})\.", "", name)).replace(".", "_")


def _owner(name: str, known: Mapping[str, str]) -> tuple[str, str] | None:
    """The linear whose name `name` continues, and the rest."""
    plain = _plain(name)
    for end in [found.start() for found in re.finditer("_", plain)][::-1]:
        if plain[:end] in known:
            return known[plain[:end]], name[len(name) - len(plain) + end + 1 :]
    return None


def folds_in_its_alpha(key: str) -> bool:
    """Whether files of this layout without alpha mean alpha = rank, as all do but PEFT's own.

    PEFT's own begin with its wrapper, of a UNet or of a whole pipeline; diffusers writes `unet.` before that.
    """
    if ".lora_A." not in key:
        return True
    wrappers = _WRAPPERS.match(key)
    named = wrappers is not None and re.search("unet|diffusion_model|lycoris", wrappers[0], re.IGNORECASE)
    return bool(named) and not _OF_PEFT.match(key)


def is_lora(keys: Iterable[str]) -> bool:
    """Whether any of the keys is one of a LoRA or of its relatives (LoHa, LoKr, OFT), in whatever layout."""
    return any(split is not None and split[1] != ALPHA for split in split_keys(keys, ()).values())


def summarise(names: Iterable[str]) -> str:
    """Counts layers by group, as "72 of text encoder, 16 of feed-forward layers"."""
    groups = (next(group for group, pattern in _GROUPS.items() if pattern.search(name)) for name in names)
    return ", ".join(f"{count} of {group}" for group, count in Counter(groups).most_common())
