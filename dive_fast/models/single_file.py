"""A Stable Diffusion 1 model in one `.safetensors` file, under the names of its original code. Never the network.

Such a file holds weights only. The vocabulary, and configurations other than Stable Diffusion 1.5's, come from a folder
beside it or one that the user names: `tokenizer/` (or its files), `unet/config.json` and so on, as diffusers lays them out.

diffusers' converters rename the tensors. Its `from_single_file` is not used: it needs a whole configuration folder or the
network, drops unknown tensors, and fills a missing one with random numbers or fails without its name. Here each must land.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.models.files import (
    ASSETS,
    check_safetensors,
    config_file,
    empty_network,
    filled,
    has_vocabulary,
    library_errors,
    load_tokenizer,
    read_config,
)
from dive_fast.models.prediction import declared
from dive_fast.types import InputError, shown

if TYPE_CHECKING:
    import torch

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
_AVERAGED = "model_ema."
# Stable Diffusion 1.5's settings, where they differ from the defaults of diffusers and transformers.
_DEFAULTS = ASSETS / "sd15"


def load_parts(path: Path, beside: Path | None) -> dict[str, Any]:
    """Reads `ModelBundle`'s parts from the file `path`: networks in float32 and eval mode, gradients off.

    `beside` is the folder with the vocabulary and, if they differ from Stable Diffusion 1.5's, configurations; None is
    the file's own folder. Averaged weights (EMA) of the UNet are preferred, as in published folders. What the model
    predicts is what the file declares (`prediction`). Another kind of file, tensors missing or of other shapes, no
    vocabulary, or a scheduler that contradicts the file, by its declarations or its noise levels, raises `InputError`.
    """
    from dive_fast.sampling.schedule import check_scheduler

    if path.suffix.lower() != ".safetensors":
        raise InputError(
            f"model {path} is no .safetensors file (a .ckpt may run code); convert it to safetensors first"
        )
    beside = path.parent if beside is None else beside
    folder = beside / "tokenizer" if (beside / "tokenizer").is_dir() else beside
    if not has_vocabulary(folder):
        raise InputError(
            f"model {path} is a single file, which has no vocabulary, and {beside} has no tokenizer/ either; put the"
            " tokenizer folder of Stable Diffusion 1.5 there or name it with --tokenizer"
        )
    own = {part: config_file(beside, part) for part in (*_PREFIXES, "scheduler")}
    files = {part: file if file.is_file() else config_file(_DEFAULTS, part) for part, file in own.items()}
    configs = {part: read_config(file, part) for part, file in files.items()}
    tensors = _read(path)
    scheduler = check_scheduler(declared(path, tensors, configs["scheduler"], own["scheduler"]), f"model {path}")
    _check_noise(path, tensors.get("alphas_cumprod"), scheduler, own["scheduler"])
    networks = {part: _network(path, part, configs[part], tensors) for part in _PREFIXES}
    return {"tokenizer": load_tokenizer(folder), "scheduler_config": scheduler, **networks}


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors, mapped from disk; a file that is no Stable Diffusion 1 model raises `InputError`."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type
    from safetensors.torch import load_file

    check_safetensors(path)
    tensors = load_file(path)
    missing = [prefix for prefix in _PREFIXES.values() if not any(name.startswith(prefix) for name in tensors)]
    if missing:
        with library_errors(f"model {path}", "get it again"):
            kind = infer_diffusers_model_type(tensors)  # "v1" for anything unknown
        raise InputError(
            f"model {path} has no tensors under {missing[0]}… (first {shown(min(tensors, default='none'))}; diffusers"
            f" takes it for {shown(kind)}); only a whole Stable Diffusion 1 model is read from one file, Stable Diffusion 2"
            " from its diffusers folder"
        )
    return tensors


def _check_noise(path: Path, stored: torch.Tensor | None, scheduler: Mapping[str, Any], file: Path) -> None:
    """Raises `InputError` unless `stored`, the fractions of signal that the model was trained with, are the scheduler's.

    They may be rounded, as to 8 bits. Without `file`, the user's own configuration, the scheduler is Stable Diffusion's.
    """
    import torch

    from dive_fast.sampling.schedule import training_sigmas

    if stored is None:
        return
    expected = 1 / (1 + torch.tensor(training_sigmas(scheduler)) ** 2)
    if stored.shape == expected.shape and bool(((stored.float() - expected).abs() <= 0.1 * expected + 1e-3).all()):
        return
    ends = [f"{float(levels.flatten()[-1]):.2g}" if levels.numel() else "nothing" for levels in (stored, expected)]
    raise InputError(
        f"model {path} was trained with other noise than its scheduler_config.json says (alphas_cumprod ends at {ends[0]},"
        f" there at {ends[1]}); put the one that belongs to it at {file}"
    )


def _network(path: Path, part: str, config: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    where = f"model {path}: {part}"
    module = empty_network(part, config, len(tensors), where)
    with library_errors(where, "copy it again"):
        found = _converted(path, part, module, tensors)
    return filled(
        module, found, where, "only Stable Diffusion 1 models, or those whose configurations lie beside them, are read"
    )


def _converted(path: Path, part: str, module: Any, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, Any]:
    """Returns the tensors of `part` under the names of `module`, and possibly others; a missing one may be None."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIXES[part])}
    if part == "text_encoder":  # some files, and newer transformers, leave out "text_model."
        plain = {name.removeprefix(_PREFIXES[part]).removeprefix("text_model."): t for name, t in own.items()}
        return {name: plain.get(name.removeprefix("text_model.")) for name in module.state_dict()}
    if part == "vae":
        found: dict[str, Any] = convert_ldm_vae_checkpoint(own, dict(module.config))
        return found
    if any(name.startswith(f"{_AVERAGED}diffusion_model") for name in tensors):  # pruned files keep its counters alone
        own = {name: tensors.get(_AVERAGED + name.removeprefix("model.").replace(".", "")) for name in own}
    found = convert_ldm_unet_checkpoint(own, dict(module.config))
    used = {id(tensor) for tensor in found.values()}
    left = sorted(name for name, tensor in own.items() if id(tensor) not in used)
    if left:
        raise InputError(
            f"model {path}: the UNet has {len(left)} tensors more than its configuration names, first {left[0][:80]};"
            " it is no plain Stable Diffusion 1 model"
        )
    return found
