"""A Stable Diffusion 1.5 model as its parts, loaded from and saved to diffusers' layouts. Never the network."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.models.files import (
    TEXT_PREFIX,
    WEIGHTS,
    config_file,
    fingerprint_of,
    load_network,
    load_tokenizer,
    read_config,
    resolve,
    write_tensors,
)
from dive_fast.models.lora import has_lora
from dive_fast.models.prompts import PromptTable
from dive_fast.models.sampling_file import read_sampling, write_sampling
from dive_fast.models.single_file import load_parts
from dive_fast.models.student import Student, read_student
from dive_fast.outputs import json_with, output_folder
from dive_fast.sampling.config import Sampling
from dive_fast.types import DiveError, InputError, shown, to_dict

if TYPE_CHECKING:
    import torch

PIPELINE = "StableDiffusionPipeline"
PART_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (),  # any: only its noise schedule is read
}
# What changes the text encoder's output but not the shapes of its tensors.
TEXT_CONFIG = ("num_attention_heads", "hidden_act", "layer_norm_eps")
EXTRA_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim", "time_cond_proj_dim")


@dataclass
class ModelBundle:
    """The parts of one model, float32, in eval mode, without gradients, on the CPU as loaded.

    `prompts` is set for a fused model. `scheduler_config` holds `scheduler_config.json`
    as `check_scheduler` returns it. `sampling` is how the model samples unless one says otherwise; None: as Stable
    Diffusion 1.5 (`SD15`); a `student` samples in no other way. Both change no weight, so the fingerprint leaves them out.
    """

    tokenizer: Any
    text_encoder: Any
    unet: Any
    vae: Any
    scheduler_config: dict[str, Any]
    prompts: PromptTable | None = None
    sampling: Sampling | None = None
    student: Student | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of weights, configurations, vocabulary and prompts, the same on every machine.

        It names the model as loaded: computed at the first use (about 10 s for SD 1.5) and then kept, so identity tokens
        added for training do not change it. Raises `DiveError` if LoRA layers are already in place.
        """
        if has_lora(self.unet):
            raise DiveError("the UNet already carries LoRA layers; read bundle.fingerprint before add_lora")
        from dive_fast.sampling.schedule import IGNORED

        tensors = {
            f"{part}/{name.removeprefix(TEXT_PREFIX)}": tensor
            for part in WEIGHTS
            for name, tensor in getattr(self, part).state_dict().items()
        }
        text_config = self.text_encoder.config
        noise = {name: value for name, value in self.scheduler_config.items() if name not in IGNORED}
        metadata = {
            "unet": _settings(self.unet.config, type(self.unet).__name__),
            "vae": _settings(self.vae.config, type(self.vae).__name__),
            "text_encoder": {name: getattr(text_config, name) for name in TEXT_CONFIG},
            "scheduler": _settings(noise, str(noise.get("_class_name"))),
            "vocabulary": self.tokenizer.get_vocab(),
            "max_tokens": self.tokenizer.model_max_length,
            "prompts": None if self.prompts is None else to_dict(self.prompts),
        }
        return fingerprint_of(metadata, tensors)


def _settings(config: Any, class_name: str) -> dict[str, Any]:
    """Returns the entries of a diffusers config that differ from its class's defaults: a newer library adds nothing."""
    import diffusers

    cls = getattr(diffusers, class_name, None)
    parameters = inspect.signature(cls.__init__).parameters if cls is not None else {}
    defaults = {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
    plain = json.loads(json.dumps({k: v for k, v in dict(config).items() if not k.startswith("_")}))
    return {"class": class_name, **{k: v for k, v in plain.items() if k not in defaults or defaults[k] != v}}


def load_bundle(path: ModelBundle | Path | str, tokenizer: Path | str | None = None) -> ModelBundle:
    """Loads a diffusers folder, or Stable Diffusion 1 in one `.safetensors` file; "pocket" is the shipped model.

    Returns a bundle as it is. The networks are float32 (files may be fp16), in eval mode, with gradients off. Reads
    safetensors only and never the network. A single file has no vocabulary: that lies beside it, or in the folder
    `tokenizer` (`single_file`). A missing, broken or unsupported part raises `InputError` with what was found.
    """
    if isinstance(path, ModelBundle):
        return path
    folder = resolve(path, "pocket-base")
    if folder.is_file():
        bundle = ModelBundle(**load_parts(folder, None if tokenizer is None else Path(tokenizer)))
    elif tokenizer is not None:
        raise InputError(f"model {folder} is no single file, and a folder has its own tokenizer; leave --tokenizer out")
    else:
        bundle = _from_folder(folder)
    problems = _mismatches(bundle)
    if problems:
        raise InputError(f"model {folder}: {'; '.join(problems)}; only models of Stable Diffusion 1.5's kind are read")
    return bundle


def _from_folder(folder: Path) -> ModelBundle:
    from dive_fast.sampling.schedule import check_scheduler

    _check_model_index(folder)
    noise = config_file(folder, "scheduler")
    scheduler_config = check_scheduler(read_config(noise, "scheduler"), str(noise))  # first, as it takes no time
    return ModelBundle(
        tokenizer=load_tokenizer(folder / "tokenizer"),
        text_encoder=load_network(folder, "text_encoder"),
        unet=load_network(folder, "unet"),
        vae=load_network(folder, "vae"),
        scheduler_config=scheduler_config,
        prompts=PromptTable.read(folder / "prompts.json") if (folder / "prompts.json").is_file() else None,
        sampling=read_sampling(folder),
        student=read_student(folder),
    )


def _check_model_index(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"model {folder} is not a folder; give a diffusers folder (with model_index.json) or 'pocket'")
    if not (folder / "model_index.json").is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"model {folder} has no model_index.json (found {found}); give a diffusers model folder")
    index = read_json(folder / "model_index.json", "model")
    pipeline = index.get("_class_name") if isinstance(index, dict) else index
    if pipeline != PIPELINE:
        raise InputError(f"model {folder} is a {pipeline}; only {PIPELINE} (Stable Diffusion 1.5's kind) is supported")
    for part, allowed in PART_CLASSES.items():
        entry = index.get(part)
        cls = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        if cls is None or not (folder / part).is_dir():
            raise InputError(f"model {folder} has no {part}; copy the whole model folder again")
        if allowed and cls not in allowed:
            raise InputError(f"model {folder}: {part} is a {cls}; supported: {', '.join(allowed)}")


def _mismatches(bundle: ModelBundle) -> list[str]:
    """Returns why these parts cannot work together; empty if they can."""
    unet, vae, text = bundle.unet.config, bundle.vae.config, bundle.text_encoder.config
    longest, tokens = text.max_position_embeddings, bundle.tokenizer.model_max_length
    vocabulary, rows = len(bundle.tokenizer), bundle.text_encoder.get_input_embeddings().weight.shape[0]
    channels, latents = (unet.in_channels, unet.out_channels), vae.latent_channels
    read, given = unet.cross_attention_dim, text.hidden_size
    sample, scale = unet.sample_size, vae.scaling_factor
    sides = sample if isinstance(sample, list | tuple) and len(sample) == 2 else (sample,)
    extra = [name for name in EXTRA_INPUTS if unet.get(name) is not None]
    problems = {
        f"UNet {channels[0]} -> {channels[1]} channels, VAE latents {latents}, need equal": {*channels} != {latents},
        f"UNet reads embeddings {read} wide, the text encoder gives {given}": read != given,
        f"the UNet's sample_size is {shown(sample)}, not one number or two": {*map(type, sides)} != {int},
        f"the VAE's scaling_factor is {shown(scale)}, not a number > 0": not _positive(scale),
        "the VAE shifts its latents (shift_factor)": vae.get("shift_factor") is not None,
        f"the UNet wants further inputs ({', '.join(extra)})": bool(extra),
        f"the tokenizer pads to {tokens} tokens, the text encoder reads {longest}": tokens > longest,
        f"the tokenizer knows {vocabulary} tokens, the text encoder has {rows} rows": vocabulary > rows,
    }
    return [problem for problem, found in problems.items() if found]


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0


def save_bundle(
    bundle: ModelBundle, path: Path | str, dtype: torch.dtype | None = None, overwrite: bool = False
) -> Path:
    """Writes the model as a diffusers folder (safetensors), with `prompts.json` if it is fused and `sampling.json` if it
    has its own; whole or not at all.

    Returns the folder. `dtype` casts the weights in the files, such as torch.float16 for shipping; the rounded model has
    another fingerprint. An equal folder at `path` stays; another one raises `InputError` without `overwrite`, other content
    always.
    """
    if has_lora(bundle.unet):
        raise DiveError(f"cannot save {path}: the UNet carries LoRA layers; remove_lora or fuse first")
    with output_folder(path, is_written_here, overwrite) as folder:
        for part in ("unet", "vae"):
            module = getattr(bundle, part)
            config = json.loads(module.to_json_string())
            config.pop("_name_or_path", None)  # diffusers notes the folder that the model was read from
            write_json(config_file(folder, part), config)
            write_tensors(folder / part / WEIGHTS[part], module.state_dict(), dtype)
        _save_text_encoder(bundle.text_encoder, folder / "text_encoder", dtype)
        _save_tokenizer(bundle.tokenizer, folder / "tokenizer")
        write_json(config_file(folder, "scheduler"), bundle.scheduler_config)
        if bundle.prompts is not None:
            bundle.prompts.write(folder / "prompts.json")
        if bundle.sampling is not None:
            write_sampling(bundle.sampling, folder)
        if bundle.student is not None:
            bundle.student.write(folder)
        write_json(folder / "model_index.json", _model_index(bundle))
    return Path(path)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception for a full disk
        raise DiveError(f"cannot write {folder}: {error}; free space or choose another --out, then rerun") from error


def _save_text_encoder(text_encoder: Any, folder: Path, dtype: torch.dtype | None) -> None:
    config = copy.deepcopy(text_encoder.config)
    config.architectures = [type(text_encoder).__name__]
    # transformers opens a model in the dtype its config names, diffusers opens the UNet in float32: they must agree
    config.dtype = "float32"
    config.save_pretrained(folder)
    tensors = {TEXT_PREFIX + name.removeprefix(TEXT_PREFIX): t for name, t in text_encoder.state_dict().items()}
    write_tensors(folder / WEIGHTS["text_encoder"], tensors, dtype)


def _model_index(bundle: ModelBundle) -> dict[str, Any]:
    import diffusers

    return {
        "_class_name": PIPELINE,
        "_diffusers_version": diffusers.__version__,
        "_dive_fast": "save_bundle",  # marks the folder as one that may be replaced; diffusers ignores it
        "requires_safety_checker": False,
        **{part: [None, None] for part in ("feature_extractor", "image_encoder", "safety_checker")},
        **{part: ["transformers", PART_CLASSES[part][0]] for part in ("text_encoder", "tokenizer")},
        **{part: ["diffusers", PART_CLASSES[part][0]] for part in ("unet", "vae")},
        "scheduler": ["diffusers", bundle.scheduler_config["_class_name"]],
    }


def is_written_here(folder: Path) -> bool:
    """Whether `folder` is a model folder of `save_bundle`, which may be replaced."""
    return json_with("_dive_fast")(folder / "model_index.json")
