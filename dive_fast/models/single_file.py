"""A Stable Diffusion 1 model in one `.safetensors` file, under the names of its original code. Never the network.

Such a file holds weights only. The vocabulary, and configurations other than Stable Diffusion 1.5's, come from a folder
beside it or one that the user names: `tokenizer/` (or its files), `unet/config.json` and so on, as diffusers lays them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import brief, read_json
from dive_fast.models.files import check_safetensors, has_vocabulary, load_tokenizer
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
_AVERAGED = "model_ema."
_OTHERS = {  # what else such a file may be, by a key's beginning
    "conditioner.embedders.": "Stable Diffusion XL",
    "cond_stage_model.model.": "Stable Diffusion 2 (its text encoder is OpenCLIP)",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "lora_unet_": "a LoRA",
    "unet.": "a LoRA",
    "base_model.model.": "a LoRA",
    "down_blocks.": "one network in diffusers' names",
    "text_model.": "one network in diffusers' names",
}
# Stable Diffusion 1.5's settings, where they differ from those that the classes of diffusers and transformers start from.
_CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "sample_size": 512,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "scheduler": {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "clip_sample": False,
        "trained_betas": None,
    },
}


def load_parts(path: Path, beside: Path | None) -> dict[str, Any]:
    """`ModelBundle`'s parts out of the file `path`: networks float32, in eval mode, gradients off; tokenizer; scheduler.

    `beside` is the folder with the vocabulary and, if they differ from Stable Diffusion 1.5's, configurations; None is
    the file's own folder. Where the file has averaged weights (EMA) of the UNet too, those are taken, as published
    folders have them. Another kind of file, tensors missing or in other shapes, or no vocabulary raises `InputError`.
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
    configs = {part: _config(beside, part, own) for part, own in _CONFIGS.items()}
    tensors = _read(path)
    return {
        "tokenizer": load_tokenizer(folder),
        "unet": _unet(path, configs["unet"], tensors),
        "vae": _vae(path, configs["vae"], tensors),
        "text_encoder": _text_encoder(path, configs["text_encoder"], tensors),
        "scheduler_config": configs["scheduler"],
    }


def _config(beside: Path, part: str, own: dict[str, Any]) -> dict[str, Any]:
    file = beside / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    if not file.is_file():
        return own
    config = read_json(file, part)
    if not isinstance(config, dict) or (part == "scheduler" and not isinstance(config.get("_class_name"), str)):
        raise InputError(f"{part}: {file} is no configuration of diffusers; copy it again")
    return config


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors, mapped from disk; `InputError` says what a file is that is no Stable Diffusion 1 model."""
    from safetensors.torch import load_file

    check_safetensors(path)
    tensors = load_file(path)
    missing = [prefix for prefix in (UNET, VAE, TEXT) if not any(name.startswith(prefix) for name in tensors)]
    other = next((what for start, what in _OTHERS.items() if any(name.startswith(start) for name in tensors)), None)
    if other is not None or missing:
        found = (
            f"is {other}" if other else f"has no tensors under {missing[0]}… (first {min(tensors, default='none')!r})"
        )
        raise InputError(
            f"model {path} {found}; only a whole Stable Diffusion 1 model is read from one file, Stable Diffusion 2 from"
            " its diffusers folder"
        )
    return tensors


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _unet(path: Path, config: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    own = _under(UNET, tensors)
    if any(name.startswith(_AVERAGED) for name in tensors):
        averaged = {name: _AVERAGED + name.removeprefix("model.").replace(".", "") for name in own}
        absent = sorted(set(averaged.values()) - set(tensors))
        if absent:
            raise InputError(
                f"model {path}: {len(absent)} averaged weights are missing, first {absent[0]}; copy it again"
            )
        own = {name: tensors[other] for name, other in averaged.items()}
    module = _empty(UNet2DConditionModel.from_config, config, path, "unet")
    try:
        landing = convert_ldm_unet_checkpoint(own, dict(module.config))
    except KeyError as error:
        raise InputError(
            f"model {path}: the UNet lacks {error}, which its configuration asks for; copy it again"
        ) from error
    used = {tensor.data_ptr() for tensor in landing.values() if tensor is not None}
    left = sorted(name for name, tensor in own.items() if tensor.data_ptr() not in used)
    if left:
        raise InputError(f"model {path}: the UNet has {len(left)} tensors too many for its configuration, first {left[0]};"
                         " it is no plain Stable Diffusion 1 model")  # fmt: skip
    return _landed(module, landing, path, "unet")


def _vae(path: Path, config: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    module = _empty(AutoencoderKL.from_config, config, path, "vae")
    return _landed(module, convert_ldm_vae_checkpoint(_under(VAE, tensors), dict(module.config)), path, "vae")


def _text_encoder(path: Path, config: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    module = _empty(lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config)), config, path, "text_encoder")
    # some files, and newer transformers, leave out this part of the name
    names = {name.removeprefix("text_model."): name for name in module.state_dict()}
    plain = {name.removeprefix(TEXT).removeprefix("text_model."): t for name, t in _under(TEXT, tensors).items()}
    _landed(module, {names[name]: tensor for name, tensor in plain.items() if name in names}, path, "text_encoder")
    for name, buffer in module.named_buffers():
        if buffer.is_meta:  # the positions 0, 1, ..., which are in no state
            holder, _, last = name.rpartition(".")
            module.get_submodule(holder).register_buffer(last, torch.arange(buffer.shape[-1])[None], persistent=False)
    return module


def _empty(build: Any, config: dict[str, Any], path: Path, part: str) -> Any:
    """The network without numbers, which are then put in its place: nothing is drawn at random."""
    import torch

    try:
        with torch.device("meta"):
            return build(config)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError, NotImplementedError) as error:
        detail = brief(error, 200)
        raise InputError(
            f"model {path}: no {part} can be made of its configuration ({detail}); copy it again"
        ) from error


def _landed(module: Any, tensors: Mapping[str, torch.Tensor], path: Path, part: str) -> Any:
    """`module` with `tensors` in it; one that is missing or has another shape raises `InputError`."""
    wanted = module.state_dict()
    wrong = [name for name in wanted if tensors.get(name) is None or tensors[name].shape != wanted[name].shape]
    if wrong:
        found = tensors.get(wrong[0])
        raise InputError(
            f"model {path}: {len(wrong)} of {len(wanted)} tensors of the {part} are missing or have another shape, first"
            f" {wrong[0]} {list(wanted[wrong[0]].shape)} ({'missing' if found is None else list(found.shape)}); only"
            " Stable Diffusion 1 models, or those whose configurations lie beside them, are read as single files"
        )
    module.load_state_dict({name: tensors[name].float() for name in wanted}, assign=True)
    return module.eval().requires_grad_(False)
