"""How strongly a LoRA of another tool acts: alpha over rank, which each layout writes in another place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dive_fast.io import read_json
from dive_fast.models.interop.states import State
from dive_fast.types import InputError

_UNSUPPORTED = {"use_dora": "DoRA", "fan_in_fan_out": "transposed weights"}
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Scaling:
    """PEFT's configuration of a LoRA: rank `r` and `lora_alpha`, with exceptions by linear (PEFT's patterns)."""

    where: str
    r: int
    lora_alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool  # rank-stabilised: alpha / sqrt(rank)

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


def read_scaling(state: State, peft_config: Path | None) -> Scaling | None:
    """Reads the configuration of the UNet's LoRA: the header that diffusers writes, else PEFT's `adapter_config.json`."""
    header = state.metadata.get("lora_adapter_metadata")
    if header is not None:
        where = f"the header of {state.path}"
        try:
            data = json.loads(header)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not valid JSON ({error}); save the file again") from error
        if isinstance(data, dict):
            data = {key.removeprefix("unet."): value for key, value in data.items() if key.startswith("unet.")}
        if data != {}:
            return Scaling.parse(data, where)
    return Scaling.parse(read_json(peft_config, "LoRA"), str(peft_config)) if peft_config is not None else None
