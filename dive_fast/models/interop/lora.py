"""A LoRA in any layout, of any ranks and alphas, as an adapter holds it. Each of its keys lands or is named.

diffusers only warns of keys that fit nowhere; here they stop the import, or the caller drops them on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dive_fast.models.interop.lora_names import ALPHA, A, B, folds_in_its_alpha, split_keys, summarise
from dive_fast.models.interop.lora_scale import Scaling, read_scaling
from dive_fast.models.interop.states import State
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    import torch

_MODELS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}  # by width of the text
_REMEDY = "use the base model that it was trained on"
_RENAME = "its layers have the shapes of this model and names of another layout; save it as diffusers, PEFT or kohya do"
_CONVERT = "save it converted to plain LoRA, or merge it into the base model"
# In keys of no layer: they may change every layer.
_WHOLE = re.compile("dora|magnitude|scal|alpha|multiplier|strength", re.IGNORECASE)
_Keys = Mapping[str, str]  # the keys of one linear by part


@dataclass(frozen=True)
class ConvertedLora:
    """A LoRA as `Adapter` holds it; `landed` linears came with the file, the others are zero and change nothing.

    `dropped` are layers of the file that no adapter holds, and keys of no LoRA.
    """

    lora: dict[str, torch.Tensor]
    rank: int
    alpha: float
    landed: int
    dropped: tuple[str, ...]


class _Pair(NamedTuple):
    """The LoRA of one linear: A [rank, in], B [out, rank]; the weight gets alpha / rank * B A."""

    a: torch.Tensor
    b: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def factor(self) -> float:
        return self.alpha / self.rank


def convert(
    state: State,
    linears: Mapping[str, tuple[int, int]],
    peft_config: Path | None = None,
    drop_unsupported: bool = False,
) -> ConvertedLora:
    """Converts the LoRA in `state` for a UNet whose attention `linears` are given by name, with (in, out) features.

    `peft_config` is an `adapter_config.json`, which the file's own header overrides. Ranks are padded to the largest with
    zeros, which is exact; where the factors alpha / rank differ, they go into B, rounded once to float32. A file of which
    nothing lands, with shapes of another model, or (unless dropped) with further layers raises `InputError`.
    """
    layers, others = _layers(state, linears)
    fitting = {name: keys for name, keys in layers.items() if name in linears and keys.keys() <= {A, B, ALPHA}}
    unsupported = sorted(_display(name, keys, linears) for name, keys in layers.items() if name not in fitting)
    unsupported += others
    if not fitting:
        other_form = any(name in linears for name in layers)
        remedy = _CONVERT if other_form else _RENAME if _same_shapes(state, layers, linears) else _REMEDY
        raise InputError(
            f"{state.path}: none of its {len(layers)} LoRA layers fits this base model{_text_width(state, layers)}: it"
            f" has {summarise(unsupported)}, first {shown(unsupported[0], 160)}, needed is attention as"
            f" {next(iter(linears))!r}; {remedy}"
        )
    everywhere = [key for key in others if _WHOLE.search(key)]
    if everywhere:
        raise InputError(
            f"{state.path}: {shown(everywhere[0])} scales layers that its name does not show, so no layer can be taken"
            " alone; save it as plain LoRA"
        )
    scaling = read_scaling(state, peft_config)
    pairs = {name: _pair(state, name, keys, linears[name], scaling) for name, keys in fitting.items()}
    if unsupported and not drop_unsupported:
        raise InputError(
            f"{state.path}: {len(fitting)} of its {len(layers)} LoRA layers fit, an adapter cannot hold"
            f" {summarise(unsupported)}, first {shown(unsupported[0], 160)}; --drop-unsupported leaves them out"
        )
    return _padded(pairs, linears, tuple(unsupported))


def _layers(state: State, linears: Mapping[str, object]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Returns the keys by linear and part, and the keys of no LoRA."""
    layers: dict[str, dict[str, str]] = {}
    others = []
    for key, split in split_keys(state.values, linears).items():
        if split is None:
            others.append(key)
            continue
        linear, part = split
        first = layers.setdefault(linear, {}).setdefault(part, key)
        if first != key:
            raise InputError(f"{state.path}: {shown(first)} and {shown(key)} name the same tensor; keep one of them")
    return layers, sorted(others)


def _display(linear: str, keys: _Keys, linears: Mapping[str, object]) -> str:
    """The name of a layer that does not land; of attention with the first part that LoRA does not have."""
    return f"{linear} as {min(keys.keys() - {A, B, ALPHA})}" if linear in linears else linear


def _pair(state: State, linear: str, keys: _Keys, features: tuple[int, int], scaling: Scaling | None) -> _Pair:
    missing = [part for part in (A, B) if part not in keys]
    if missing:
        raise InputError(f"{state.path}: LoRA of {linear} has no {missing[0]}; copy the file again")
    a, b = (state.tensor(keys[part], 2) for part in (A, B))
    rank, (inputs, outputs) = a.shape[0], features
    if a.shape != (rank, inputs) or b.shape != (outputs, rank):
        raise InputError(
            f"{state.path}: LoRA of {linear} has A {list(a.shape)} and B {list(b.shape)}, this UNet needs A"
            f" [{rank}, {inputs}] and B [{outputs}, {rank}]{_text_width(state, {linear: keys})}; {_REMEDY}"
        )
    if ALPHA in keys:
        return _Pair(a, b, _number(state, keys[ALPHA]))
    if scaling is not None:
        return _Pair(a, b, scaling.alpha_of(linear, rank))
    if not folds_in_its_alpha(keys[A]):
        raise InputError(f"{state.path} is in PEFT's layout without its alpha; put its adapter_config.json beside it")
    return _Pair(a, b, float(rank))  # diffusers and kohya: a file without alpha means alpha = rank


def _number(state: State, key: str) -> float:
    import torch

    value = state.values[key]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
        raise InputError(
            f"{state.path}: {shown(key)} must be one finite number, got {shown(value)}; make the file again"
        )
    return float(value)


def _same_shapes(state: State, layers: Mapping[str, _Keys], linears: Mapping[str, tuple[int, int]]) -> bool:
    """Whether plain LoRA layers have the shapes of the UNet's linears, so only their names are others."""
    shapes = {(i, o) for i, o in linears.values()}
    others = [keys for name, keys in layers.items() if name not in linears and {A, B} <= keys.keys()]
    pairs = [(state.values[keys[A]], state.values[keys[B]]) for keys in others]
    found = {(getattr(a, "shape", (0,))[-1], getattr(b, "shape", (0,))[0]) for a, b in pairs}
    return bool(found) and found <= shapes


def _text_width(state: State, layers: Mapping[str, _Keys]) -> str:
    """The width of the text that the LoRA reads and the model that has this width, for an error; "" if unknown."""
    for linear, keys in layers.items():
        shape: tuple[int, ...] = getattr(state.values.get(keys.get(A, "")), "shape", ())
        if linear.endswith(("attn2.to_k", "attn2_to_k", "attn2.to_v", "attn2_to_v")) and len(shape) == 2:
            model = _MODELS.get(shape[1])
            return f" (it reads text {shape[1]} wide{f', as {model}' if model else ''})"
    return ""


def _padded(
    pairs: Mapping[str, _Pair], linears: Mapping[str, tuple[int, int]], dropped: tuple[str, ...]
) -> ConvertedLora:
    import torch

    largest = max(pairs.values(), key=lambda pair: pair.rank)
    rank = largest.rank
    same = largest.factor > 0 and all(pair.factor == largest.factor for pair in pairs.values())
    lora = {}
    for linear, (inputs, outputs) in linears.items():
        a, b = torch.zeros(rank, inputs), torch.zeros(outputs, rank)
        if linear in pairs:
            pair = pairs[linear]
            a[: pair.rank] = pair.a
            b[:, : pair.rank] = pair.b if same else (pair.b.double() * pair.factor).float()
        lora[f"{linear}.lora_A.weight"], lora[f"{linear}.lora_B.weight"] = a, b
    return ConvertedLora(lora, rank, largest.alpha if same else float(rank), len(pairs), dropped)
