"""What the model in a single file predicts: the noise, or v (arXiv 2202.00512). The weights alone do not show it.

| where a file declares it | as |
|---|---|
| tensors | `v_pred`; `ztsnr` for a noise schedule that ends in pure noise |
| header | `modelspec.prediction_type`, `modelspec.predict_key`, `ss_v_parameterization`, `ss_zero_terminal_snr` |
| `NAME.yaml` beside it; any .yaml, if it is the only model there | `parameterization: v`, in the first code's terms |

A file that declares nothing predicts what `scheduler/scheduler_config.json` beside it says, else the noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dive_fast.io import brief, decode_text
from dive_fast.types import InputError, shown

EPSILON, V = "epsilon", "v_prediction"
_WORDS = {"v": V, "vprediction": V, "vpred": V, "velocity": V, "eps": EPSILON, "epsilon": EPSILON, "noise": EPSILON}
_FLAGS = {"vpred": V, "vprediction": V, "vparameterization": V}
_ZERO_SNR = {"ztsnr", "zsnr", "zerosnr", "zeroterminalsnr", "rescalebetaszerosnr", "enforcezeroterminalsnr"}
_NAMES = {"predictiontype", "predictkey", "parameterization"}
_ENTRY = re.compile(r"""["']?(\w+)["']?\s*:\s*["']?([\w-]+)""")
_NO = {"", "false", "0", "none", "null", "no", "off"}


def declared(path: Path, tensors: Iterable[str], scheduler: dict[str, Any], file: Path) -> dict[str, Any]:
    """Returns the configuration `scheduler` with what the single file `path` declares of its prediction.

    `tensors` are the names in it, `file` is the place of a user's own scheduler_config.json. Declarations that are unknown,
    or that contradict each other or that file, raise `InputError`.
    """
    found = dict(_declarations(path, tensors))
    named = f"{path} declares {' and '.join(f'{value} ({where})' for where, value in found.items())}"
    remedy = f"put the right scheduler_config.json at {file} and correct the other"
    if len({*found.values()} & {EPSILON, V}) > 1:
        raise InputError(f"model {named}, which exclude each other; get it again from its author")
    changes: dict[str, Any] = {}
    for value in found.values():
        changes |= {"rescale_betas_zero_snr": True} if value == "zero SNR" else {"prediction_type": value}
    if file.is_file():
        own = {"prediction_type": EPSILON, "rescale_betas_zero_snr": False, **scheduler}
        for name, value in changes.items():
            if own[name] != value:
                raise InputError(f"model {named}, {file} has {name} {shown(own[name])}; {remedy}")
    return {**scheduler, **changes}


def check_trained_on(header: Mapping[str, str], scheduler: Mapping[str, Any], path: Path) -> None:
    """Raises `InputError` if the `header` of the LoRA `path` declares another prediction than the model's `scheduler`."""
    own = scheduler.get("prediction_type", EPSILON)
    for name, value in header.items():
        meaning = _meaning(name, value, path)
        if meaning in (EPSILON, V) and meaning != own:
            raise InputError(
                f"{path} was trained on a model that predicts {meaning} ({brief(name, 80)}), this one predicts {own}; use"
                " the base model that it was trained on"
            )


def _declarations(path: Path, tensors: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields where something is declared, and `EPSILON`, `V` or "zero SNR"."""
    for name in tensors:
        if name.startswith("edm_"):
            raise InputError(
                f"model {path} is of another kind of diffusion (tensor {shown(name)}); use one of SD 1.5's kind"
            )
        if meaning := _meaning(name, "true", path):
            yield f"tensor {name}", meaning
    for where, entries in _texts(path):
        for name, value in entries:
            if meaning := _meaning(name, value, path):
                yield f"{where} {brief(name, 80)}", meaning


def _texts(path: Path) -> Iterator[tuple[str, Iterable[tuple[str, str]]]]:
    """The file's header, and the configuration beside it that the original code reads."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
    yield "header", [*header.items(), *(entry for text in header.values() for entry in _ENTRY.findall(text))]
    alone = len([*path.parent.glob("[!.]*.safetensors")]) == 1
    for beside in sorted(file for file in path.parent.glob("[!.]*") if file.suffix.lower() in (".yaml", ".yml")):
        if (alone or beside.stem in (path.stem, path.name)) and beside.is_file():
            lines = decode_text(beside.read_bytes(), errors="replace").splitlines()
            yield beside.name, [entry for line in lines for entry in _ENTRY.findall(line.split("#")[0])]


def _meaning(name: str, value: str, path: Path) -> str | None:
    key, word = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (re.sub(r"^(modelspec\.|ss_)", "", name), value))
    if key in _NAMES:
        if word not in _WORDS:
            raise InputError(f"model {path}: its {name} is {shown(value)}, only the noise (epsilon) and v are known")
        return _WORDS[word]
    if key in _FLAGS:
        return _FLAGS[key] if word not in _NO else None
    return "zero SNR" if key in _ZERO_SNR and word not in _NO else None
