"""Writes an adapter as other tools do: in the names and files of DiVE, diffusers, PEFT and kohya."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from dive_fast.models import Adapter
from dive_fast.types import Camera

CAMERAS = (Camera("cam1", "rgb", "q7dk"), Camera("cam3", "ir", "w2vx"))


def attention_processor(key: str) -> str:
    """diffusers' first names, which DiVE's published file has: without `unet.`, `to_out_lora` for `to_out.0`."""
    linear, part = key.removesuffix(".weight").rsplit(".lora_", 1)
    attention, last = linear.removesuffix(".0").rsplit(".", 1)
    return f"{attention}.processor.{last}_lora.{'down' if part == 'A' else 'up'}.weight"


def old_diffusers(key: str) -> str:
    return "unet." + key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")


def kohya(key: str) -> str:
    linear, part = key.removesuffix(".weight").rsplit(".lora_", 1)
    return f"lora_unet_{linear.replace('.', '_')}.lora_{'down' if part == 'A' else 'up'}.weight"


def first_code(key: str) -> str:
    """Names of Stable Diffusion's first code, for the tiny UNet: attention in the first down and the last up block."""
    key = key.replace("mid_block.attentions.0.", "middle_block.1.")
    key = key.replace("down_blocks.0.attentions.0.", "input_blocks.1.1.")
    key = key.replace("up_blocks.1.attentions.0.", "output_blocks.2.1.")
    return key.replace("up_blocks.1.attentions.1.", "output_blocks.3.1.")


NAMES: dict[str, Callable[[str], str]] = {
    "attention processors": attention_processor,
    "attention processors, prefixed": lambda key: "unet." + attention_processor(key),
    "diffusers": lambda key: "unet." + key,
    "diffusers, down and up": old_diffusers,
    "kohya": kohya,
    "peft": lambda key: "base_model.model." + key,
    "peft, named": lambda key: "base_model.model." + key.replace(".weight", ".default.weight"),
    "peft in diffusers": lambda key: "unet.base_model.model." + key,
    "compiled, of parallel training": lambda key: "module.unet._orig_mod." + key,
    "compiled in part": lambda key: "unet." + key.replace(".attentions.", "._orig_mod.attentions."),
    "sharded": lambda key: "_fsdp_wrapped_module.pipe.unet." + key.replace(".attn", "._checkpoint_wrapped_module.attn"),
    "of parallel training, in part": lambda key: "UNet._forward_module." + key.replace(".attn1", ".module.attn1"),
    "LyCORIS": lambda key: "lycoris_" + kohya(key).removeprefix("lora_unet_"),
    "ComfyUI": lambda key: "diffusion_model." + key,
    "ComfyUI, the first code's names": lambda key: "diffusion_model." + first_code(key),
    "kohya, the first code's names": lambda key: kohya(first_code(key)),
    "peft of a pipeline": lambda key: "base_model.model.unet." + key,
}


def write_lora(path: Path, adapter: Adapter, layout: str, **further: torch.Tensor) -> Path:
    """The LoRA of `adapter` under the names of `layout`, and `further` tensors under their own."""
    rename = NAMES[layout]
    tensors = {rename(key): tensor for key, tensor in adapter.lora.items()} | further
    path.parent.mkdir(parents=True, exist_ok=True)
    if layout.startswith("peft"):
        config = {"peft_type": "LORA", "r": adapter.rank, "lora_alpha": adapter.alpha, "use_dora": False}
        (path.parent / "adapter_config.json").write_text(json.dumps(config))
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def write_dive(folder: Path, adapter: Adapter, codes: dict[str, str]) -> Path:
    """The folder that DiVE publishes; the pids of `adapter` must be numbers, which it writes without leading zeros."""
    write_lora(folder / "pytorch_lora_weights.safetensors", adapter, "attention processors")
    trained = adapter.embeddings.clone().requires_grad_(True)
    rows = trained[torch.arange(len(trained))]  # with a graph, as training leaves them
    names = {str(int(identity.pid)): identity.placeholder for identity in adapter.identities}
    state = {
        "learned_embeds_dict": dict(zip(names.values(), rows, strict=True)),
        "name2placeholder": names,
        "placeholder2name": {placeholder: name for name, placeholder in names.items()},
    }
    torch.save(state, folder / "learned_embeds-steps-last.bin")
    write_dataset_info(folder / "dataset_info.json", {"dataset": "sysu", "camera_to_description": codes})
    return folder


def write_dataset_info(path: Path, metadata: object) -> Path:
    text = "Custom metadata:\n" + json.dumps(metadata, indent=2)
    path.write_text(json.dumps({"citation": "", "description": text, "features": {}}, indent=2))
    return path


def write_identity(path: Path, adapter: Adapter) -> Path:
    """One identity of `adapter` as diffusers' script of textual inversion writes it."""
    save_file({"<somebody>": adapter.embeddings[0]}, path)
    return path
