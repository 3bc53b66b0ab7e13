"""How strongly a LoRA of another tool acts: alpha over rank, which each layout writes in another place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from dive_fast.models.interop.states import State
from dive_fast.types import InputError

_DIFFUSERS_HEADER = "lora_adapter_metadata"  # as diffusers names it in the header of its files
_UNSUPPORTED = {"use_dora": "DoRA", "fan_in_fan_out": "transposed weights"}
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Scaling:
    """PEFT's configuration of a LoRA: rank `r` and `lora_alpha`, with exceptions by linear (PEFT's patterns)."""

    where: str
    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False  # rank-stabilised: alpha / sqrt(rank)

    def alpha_of(self, linear: str, rank: int) -> float:
        """The alpha with which `linear` gets alpha / rank * B A; another rank than the configured raises `InputError`."""
        expected = _matching(self.rank_pattern, linear, self.r)
        if expected != rank:
            raise InputError(
                f"{self.where}: {linear} has rank {expected}, its tensors have rank {rank}; give the configuration"
                " that was saved with the weights"
            )
        alpha = float(_matching(self.alpha_pattern, linear, self.lora_alpha))
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    @classmethod
    def parse(cls, data: object, where: str) -> Scaling:
        """Reads untrusted JSON in PEFT's terms; missing or invalid entries, or no plain LoRA, raise `InputError`."""
        if not isinstance(data, dict):
            raise InputError(f"{where} must be a JSON object, got {type(data).__name__}; copy it again")
        kind = data.get("peft_type", "LORA")
        others = [name for option, name in _UNSUPPORTED.items() if data.get(option)]
        if kind != "LORA" or others:
            raise InputError(f"{where} describes {', '.join(others) or kind}, only plain LoRA can be imported")
        patterns = {name: data.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
        for name, pattern in patterns.items():
            if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
                raise InputError(f"{where}: {name} must map names to numbers, got {pattern!r}; copy it again")
        r, alpha = data.get("r"), data.get("lora_alpha")
        if not _is_number(r) or not _is_number(alpha):
            raise InputError(f"{where} needs the numbers r and lora_alpha, got {r!r} and {alpha!r}; copy it again")
        return cls(where, r, alpha, **patterns, use_rslora=bool(data.get("use_rslora")))  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _matching(pattern: Mapping[str, _Number], linear: str, default: _Number) -> _Number:
    """The value of the first pattern that the end of a linear's name matches, as PEFT reads its patterns."""
    for end, value in pattern.items():
        try:
            if re.fullmatch(rf"(.*\.)?({end})", linear):
                return value
        except re.error as error:
            raise InputError(f"LoRA configuration: pattern {end!r} is no regular expression ({error})") from error
    return default


def scaling_of(state: State) -> Scaling | None:
    """Reads the UNet's configuration in the header of a file that diffusers saved; None if there is none."""
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
