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

from dive_fast.io import brief
from dive_fast.models.files import (
    ASSETS,
    check_safetensors,
    config_file,
    has_vocabulary,
    load_tokenizer,
    network_class,
    read_config,
)
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
# Stable Diffusion 1.5's settings, where they differ from the defaults of diffusers and transformers.
_DEFAULTS = ASSETS / "sd15"


def load_parts(path: Path, beside: Path | None) -> dict[str, Any]:
    """Reads `ModelBundle`'s parts from the file `path`: networks in float32 and eval mode, gradients off.

    `beside` is the folder with the vocabulary and, if they differ from Stable Diffusion 1.5's, configurations; None is
    the file's own folder. Averaged weights (EMA) of the UNet are preferred, as in published folders. Another kind of
    file, tensors missing or of other shapes, or no vocabulary raises `InputError`.
    """
    if path.suffix != ".safetensors":
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
    configs = {}
    for part in (*_PREFIXES, "scheduler"):
        file = config_file(beside, part)
        configs[part] = read_config(file if file.is_file() else config_file(_DEFAULTS, part), part)
    tensors = _read(path)
    networks = {part: _network(path, part, configs[part], tensors) for part in _PREFIXES}
    return {"tokenizer": load_tokenizer(folder), "scheduler_config": configs["scheduler"], **networks}


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors, mapped from disk; a file that is no Stable Diffusion 1 model raises `InputError`."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type
    from safetensors.torch import load_file

    check_safetensors(path)
    tensors = load_file(path)
    missing = [prefix for prefix in _PREFIXES.values() if not any(name.startswith(prefix) for name in tensors)]
    if missing:
        kind = infer_diffusers_model_type(tensors)  # "v1" for anything unknown
        raise InputError(
            f"model {path} has no tensors under {missing[0]}… (first {min(tensors, default='none')!r}; diffusers takes it"
            f" for {kind!r}); only a whole Stable Diffusion 1 model is read from one file, Stable Diffusion 2 from its"
            " diffusers folder"
        )
    return tensors


def _network(path: Path, part: str, config: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    import torch

    try:
        with torch.device("meta"):  # draws no random numbers; the file's tensors take the place of the parameters
            cls = network_class(part)
            text = part == "text_encoder"
            module = cls(cls.config_class.from_dict(config)) if text else cls.from_config(config)
        found = _converted(path, part, module, tensors)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"model {path}: no {part} can be made of its configuration ({brief(error, 200)}); copy it again"
        ) from error
    expected = module.state_dict()
    wrong = [name for name, tensor in expected.items() if getattr(found.get(name), "shape", None) != tensor.shape]
    if wrong:
        tensor = found.get(wrong[0])
        raise InputError(
            f"model {path}: {len(wrong)} of {len(expected)} tensors of the {part} are missing or have another shape,"
            f" first {wrong[0]} {list(expected[wrong[0]].shape)} ({'missing' if tensor is None else list(tensor.shape)});"
            " only Stable Diffusion 1 models, or those whose configurations lie beside them, are read as single files"
        )
    module.load_state_dict({name: found[name].float() for name in expected}, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:  # the positions 0, 1, ... of the text encoder, which no file holds
            holder, _, last = name.rpartition(".")
            module.get_submodule(holder).register_buffer(last, torch.arange(buffer.shape[-1])[None], persistent=False)
    return module.eval().requires_grad_(False)


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
    if any(name.startswith("model_ema.") for name in tensors):
        own = {name: tensors.get("model_ema." + name.removeprefix("model.").replace(".", "")) for name in own}
    found = convert_ldm_unet_checkpoint(own, dict(module.config))
    used = {id(tensor) for tensor in found.values()}
    left = sorted(name for name, tensor in own.items() if id(tensor) not in used)
    if left:
        raise InputError(
            f"model {path}: the UNet has {len(left)} tensors more than its configuration names, first {left[0]};"
            " it is no plain Stable Diffusion 1 model"
        )
    return found
