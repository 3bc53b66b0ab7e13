"""How strongly a LoRA of another tool acts: alpha over rank, which each layout writes in another place."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dive_fast.io import brief
from dive_fast.json_files import parse_json, read_json
from dive_fast.models.interop.states import State
from dive_fast.types import InputError, shown

# Fields of PEFT's configuration that say nothing of what the finished weights do, whatever their value. Those with values
# are such as long as they have one of these: other initialisations change the base model too, which PEFT repeats on load.
_HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "lora_dropout", "modules_to_save", "layers_to_transform", "layers_pattern"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
_ALLOWED: dict[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}
_READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
_OFF: tuple[object, ...] = (None, False, "", [], {})
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
        others = [
            f"{name[:80]} {brief(json.dumps(value), 80)}"
            for name, value in data.items()
            if name not in _READ | _HARMLESS and value not in (*_OFF, *_ALLOWED.get(name, ()))  # unknown ones too
        ]
        if others:
            raise InputError(
                f"{where} describes no plain LoRA ({', '.join(others[:4])}); save it converted to LoRA, as PEFT does with"
                " path_initial_model_for_weight_conversion for pissa, olora and corda"
            )
        patterns = {name: data.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
        for name, pattern in patterns.items():
            if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
                raise InputError(f"{where}: {name} must map names to numbers, got {shown(pattern)}; copy it again")
        r, alpha = data.get("r"), data.get("lora_alpha")
        if not _is_number(r) or not _is_number(alpha):
            found = f"{shown(r)} and {shown(alpha)}"
            raise InputError(f"{where} needs the numbers r and lora_alpha, got {found}; copy it again")
        return cls(where, r, alpha, **patterns, use_rslora=bool(data.get("use_rslora")))  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _matching(pattern: Mapping[str, _Number], linear: str, default: _Number) -> _Number:
    """The value of the first pattern that the end of a linear's name matches, as PEFT reads its patterns."""
    for end, value in pattern.items():
        if len(re.findall(r"[*+{]", end)) > 3 or re.search(r"\)[*+{]", end):  # a match might never end
            raise InputError(f"LoRA configuration: pattern {shown(end)} is too complex; write the names of the linears")
        try:
            if re.fullmatch(rf"(.*\.)?({end})", linear):
                return value
        except re.error as error:
            raise InputError(f"LoRA configuration: pattern {shown(end)} is no regular expression ({error})") from error
    return default


def read_scaling(state: State, peft_config: Path | None) -> Scaling | None:
    """Reads the configuration of the UNet's LoRA: the header that diffusers writes, else PEFT's `adapter_config.json`."""
    header = state.metadata.get("lora_adapter_metadata")
    if header is not None:
        where = f"the header of {state.path}"
        try:
            data = parse_json(header.encode())
        except ValueError as error:
            raise InputError(f"{where} is not valid JSON ({brief(error, 80)}); save the file again") from error
        if isinstance(data, dict) and "r" not in data:  # one of a whole pipeline, not of a UNet alone
            data = {key.removeprefix("unet."): value for key, value in data.items() if key.startswith("unet.")}
        if data != {}:
            return Scaling.parse(data, where)
    return Scaling.parse(read_json(peft_config, "LoRA"), str(peft_config)) if peft_config is not None else None
