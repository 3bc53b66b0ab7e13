"""A LoRA in whatever layout, of whatever ranks and alphas, as an adapter holds it. Each key lands or is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dive_fast.models.interop.lora_keys import ALPHA, A, B, in_form, kind_of, parts
from dive_fast.models.interop.lora_scale import Scaling, scaling_of
from dive_fast.models.interop.states import State
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

_READS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}  # by width of the text


@dataclass(frozen=True)
class FoldedLora:
    """A LoRA as `Adapter` holds it; `landed` linears came with the file, the others are zero and change nothing.

    `dropped` are the layers of the file that no adapter holds (and its keys that are of no LoRA), left out on request.
    """

    lora: dict[str, torch.Tensor]
    rank: int
    alpha: float
    landed: int
    dropped: tuple[str, ...]


class _Pair(NamedTuple):
    """One linear's LoRA: A [rank, in], B [out, rank] and alpha; the weight gets alpha / rank * B A."""

    a: torch.Tensor
    b: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def factor(self) -> float:
        return self.alpha / self.rank


def fold(
    state: State,
    linears: Mapping[str, tuple[int, int]],
    scaling: Scaling | None = None,
    drop_unsupported: bool = False,
) -> FoldedLora:
    """The LoRA in `state` for a UNet whose attention `linears` are given by name, with (in, out) features.

    `scaling` is that of an `adapter_config.json`; what the file itself says goes before it. Ranks are brought to the largest
    with zeros, which is exact; where the factors alpha / rank differ they go into B, rounded once to float32. A file of
    which nothing lands, whose shapes are another model's, or (unless dropped) with further layers raises `InputError`.
    """
    grouped, strangers = _group(state, linears)
    known = {linear: keys for linear, keys in grouped.items() if linear in linears and keys.keys() <= {A, B, ALPHA}}
    unsupported = (
        *_named({linear: keys for linear, keys in grouped.items() if linear not in known}, linears),
        *strangers,
    )
    if not known:
        raise InputError(f"{state.path}: none of its {len(grouped)} LoRA layers fits{_found(state, grouped, linears)}")
    scaling = scaling_of(state) or scaling
    pairs = {linear: _pair(state, linear, keys, linears[linear], scaling) for linear, keys in known.items()}
    if unsupported and not drop_unsupported:
        raise InputError(
            f"{state.path}: {len(known)} of its {len(grouped)} LoRA layers fit, and an adapter has no place for"
            f" {summary(unsupported)}, first {unsupported[0]!r}; --drop-unsupported leaves them out"
        )
    return _as_one(pairs, linears, unsupported)


def summary(names: tuple[str, ...]) -> str:
    """How many of which kind, as "72 of text encoder, 16 of feed-forward layers"."""
    return ", ".join(f"{count} of {kind}" for kind, count in Counter(kind_of(name) for name in names).most_common())


def _named(grouped: Mapping[str, Mapping[str, str]], linears: Mapping[str, object]) -> tuple[str, ...]:
    """The names of layers that do not land, sorted; of attention with what it has that LoRA has not."""
    return tuple(sorted(in_form(name, kinds) if name in linears else name for name, kinds in grouped.items()))


def _group(state: State, linears: Mapping[str, tuple[int, int]]) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Keys by linear and kind, and the keys that are of no LoRA."""
    grouped: dict[str, dict[str, str]] = {}
    strangers = []
    for key, part in parts(state.values, linears).items():
        if part is None:
            strangers.append(key)
        elif part.kind in grouped.setdefault(part.linear, {}):
            first = grouped[part.linear][part.kind]
            raise InputError(f"{state.path}: {first!r} and {key!r} name the same tensor; keep one of them")
        else:
            grouped[part.linear][part.kind] = key
    return grouped, tuple(sorted(strangers))


def _pair(
    state: State, linear: str, keys: Mapping[str, str], features: tuple[int, int], scaling: Scaling | None
) -> _Pair:
    missing = [kind for kind in (A, B) if kind not in keys]
    if missing:
        raise InputError(f"{state.path}: LoRA of {linear} has no {missing[0]}; the file is not whole, copy it again")
    a, b = (state.tensor(keys[kind], "[rows, columns]", 2) for kind in (A, B))
    rank, (inputs, outputs) = a.shape[0], features
    if a.shape != (rank, inputs) or b.shape != (outputs, rank):
        raise InputError(
            f"{state.path}: LoRA of {linear} has A {list(a.shape)} and B {list(b.shape)}, this UNet needs A"
            f" [{rank}, {inputs}] and B [{outputs}, {rank}]{_width_of(linear, a, inputs)}"
        )
    if ALPHA in keys:
        return _Pair(a, b, _alpha(state, keys[ALPHA]))
    if scaling is not None:
        return _Pair(a, b, scaling.alpha_of(linear, rank))
    if ".lora_A." in keys[A] and not keys[A].startswith("unet."):
        raise InputError(
            f"{state.path} is in PEFT's layout and does not give its alpha; put its adapter_config.json beside it"
        )
    return _Pair(a, b, float(rank))  # diffusers and kohya: a file without alpha means alpha = rank


def _alpha(state: State, key: str) -> float:
    """The one number under `key`, whatever its type."""
    import torch

    value = state.values[key]
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e9 < value < 1e9:
        raise InputError(f"{state.path}: {key!r} must be one finite number, got {value!r}; make the file again")
    return float(value)


def _width_of(linear: str, a: torch.Tensor, inputs: int) -> str:
    remedy = "; use the base model that it was trained on"
    if not linear.endswith((".attn2.to_k", ".attn2.to_v")) or a.shape[1] == inputs:
        return remedy
    return f": it reads text {_wide(a.shape[1])} and this base model's is {_wide(inputs)}{remedy}"


def _wide(width: int) -> str:
    return f"{width} wide ({_READS.get(width, 'another model')})"


def _found(state: State, grouped: Mapping[str, Mapping[str, str]], linears: Mapping[str, object]) -> str:
    """What a file holds of which nothing fits, and what would."""
    import torch

    reads = ""
    for linear, keys in grouped.items():
        value = state.values[keys[A]] if A in keys and linear.endswith(("attn2.to_k", "attn2_to_k")) else None
        if isinstance(value, torch.Tensor) and value.ndim == 2:
            reads = f", which reads text {_wide(value.shape[1])}"
            break
    names = _named(grouped, linears) or tuple(sorted(state.values))
    return (
        f" this base model{reads}: it has {summary(names)}, first {names[0]!r}, and what fits is attention as"
        f" {next(iter(linears))!r}; use the base model that it was trained on"
    )


def _as_one(pairs: Mapping[str, _Pair], linears: Mapping[str, tuple[int, int]], dropped: tuple[str, ...]) -> FoldedLora:
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
    return FoldedLora(lora, rank, largest.alpha if same else float(rank), len(pairs), dropped)
