"""Writes a model as one file under the names of Stable Diffusion's first code."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from dive_fast.models import ModelBundle

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str, layers: int, attends: set[int]) -> str:
    """`layers` is layers_per_block, `attends` the up blocks with attention, whose upsampler comes third."""
    for ours, theirs in AROUND.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|\w+samplers)\.(\d+)\.(.+)", name)
    assert match, name
    side, block, what, at, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if what == "resnets":
        part, _, kind = rest.partition(".")
        rest = f"{RESNET[part]}.{kind}"
    if side == "mid":
        return f"middle_block.{1 if what == 'attentions' else 2 * at}.{rest}"
    if what == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.{rest.replace('conv', 'op')}"
    if what == "upsamplers":
        return f"output_blocks.{block * (layers + 1) + layers}.{2 if block in attends else 1}.{rest}"
    number = block * (layers + 1) + at + (1 if side == "down" else 0)
    return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{1 if what == 'attentions' else 0}.{rest}"


def vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        before, _, rest = name.partition("mid_block.attentions.0.")
        part, _, kind = rest.rpartition(".")
        return f"{before}mid.attn_1.{ATTENTION[part]}.{kind}"
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", name)


def ldm_tensors(bundle: ModelBundle) -> dict[str, torch.Tensor]:
    """Every weight of the bundle, and the position ids that such files carry."""
    unet, vae = bundle.unet.config, bundle.vae.config
    attends = {i for i, kind in enumerate(unet.up_block_types) if kind.startswith("CrossAttn")}
    tensors = {
        f"model.diffusion_model.{unet_name(name, unet.layers_per_block, attends)}": tensor
        for name, tensor in bundle.unet.state_dict().items()
    }
    for name, tensor in bundle.vae.state_dict().items():
        linear = "mid_block.attentions" in name and tensor.ndim == 2
        tensors[f"first_stage_model.{vae_name(name, len(vae.block_out_channels))}"] = (
            tensor[..., None, None] if linear else tensor
        )
    text = "cond_stage_model.transformer.text_model."
    for name, tensor in bundle.text_encoder.state_dict().items():
        tensors[text + name.removeprefix("text_model.")] = tensor
    length = bundle.text_encoder.config.max_position_embeddings
    return {**tensors, f"{text}embeddings.position_ids": torch.arange(length)[None]}


def write_single_file(bundle: ModelBundle, path: Path, **changes: torch.Tensor | None) -> Path:
    """The file, with the tensors in `changes` put in or (None) left out."""
    tensors = {**ldm_tensors(bundle), **changes}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}, path)
    return path
