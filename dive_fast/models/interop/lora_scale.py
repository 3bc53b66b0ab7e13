"""How strongly a LoRA of elsewhere acts: alpha, which each layout writes somewhere else, over rank."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dive_fast.models.interop.states import State
from dive_fast.types import InputError

_DIFFUSERS_HEADER = "lora_adapter_metadata"  # as diffusers names it in the header of its files
_UNSUPPORTED = {"use_dora": "DoRA", "fan_in_fan_out": "transposed weights"}


@dataclass(frozen=True)
class Scaling:
    """PEFT's description of a LoRA: `r` and `lora_alpha`, with exceptions by linear (PEFT's patterns)."""

    where: str
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    root: bool = False  # rank-stabilised: alpha / sqrt(rank)

    def alpha_of(self, linear: str, rank: int) -> float:
        """The alpha by which `linear` gets alpha / rank * B A; a rank other than the one described raises `InputError`."""
        said = _matching(self.rank_pattern, linear, self.rank)
        if said != rank:
            raise InputError(
                f"{self.where} says that {linear} has rank {said}, its tensors have rank {rank};"
                " the description and the weights do not belong together"
            )
        alpha = float(_matching(self.alpha_pattern, linear, self.alpha))
        return alpha * math.sqrt(rank) if self.root else alpha

    @classmethod
    def parse(cls, data: object, where: str) -> Scaling:
        """From untrusted JSON in PEFT's terms; what is missing, odd or of another kind than LoRA raises `InputError`."""
        if not isinstance(data, dict):
            raise InputError(f"{where} must be a JSON object, got {type(data).__name__}; copy it again")
        kind = data.get("peft_type", "LORA")
        odd = [words for name, words in _UNSUPPORTED.items() if data.get(name)]
        if kind != "LORA" or odd:
            raise InputError(f"{where} describes {', '.join(odd) or kind}, only plain LoRA can be imported")
        ranks = _numbers(data.get("rank_pattern"), where, "rank_pattern")
        alphas = _numbers(data.get("alpha_pattern"), where, "alpha_pattern")
        rank, alpha = data.get("r"), data.get("lora_alpha")
        if not _is_number(rank) or not _is_number(alpha):
            raise InputError(f"{where} needs the numbers r and lora_alpha, got {rank!r} and {alpha!r}; copy it again")
        return cls(where, int(rank), float(alpha), ranks, alphas, bool(data.get("use_rslora")))  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(values: object, where: str, name: str) -> dict[str, Any]:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(_is_number(value) for value in values.values()):
        raise InputError(f"{where}: {name} must map names to numbers, got {values!r}; copy it again")
    return values


def _matching(pattern: Mapping[str, Any], linear: str, otherwise: Any) -> Any:
    """The value of the first pattern that a linear's name ends in; PEFT reads its patterns so."""
    for end, value in pattern.items():
        try:
            if re.fullmatch(rf"(.*\.)?({end})", linear):
                return value
        except re.error as error:
            raise InputError(f"LoRA description: pattern {end!r} is no regular expression ({error})") from error
    return otherwise


def scaling_of(state: State) -> Scaling | None:
    """What the header of a file that diffusers saved says of its UNet's LoRA; None if there is none."""
    text = state.metadata.get(_DIFFUSERS_HEADER)
    if text is None:
        return None
    where = f"the header of {state.path}"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not valid JSON ({error}); save the file again") from error
    if not isinstance(data, dict):
        raise InputError(f"{where} must be a JSON object, got {type(data).__name__}; save the file again")
    of_unet = {key.removeprefix("unet."): value for key, value in data.items() if key.startswith("unet.")}
    return Scaling.parse(of_unet, where) if of_unet else None
