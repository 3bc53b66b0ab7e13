"""A tiny decoder in the place of a model's own: that of diffusers' AutoencoderTiny (TAESD), or one convolution.

The folder of the first is AutoencoderTiny's, which plain diffusers opens, and `decoder.json`. One convolution of the
latents, then a pixel shuffle (ESPCN, arXiv 1609.05158), suffices where pixels follow latents linearly, as in the pocket
model. A tiny decoder belongs to an autoencoder, and so to every fused model and student of one base.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.models.files import check_safetensors, filled, fingerprint_of, write_tensors
from dive_fast.outputs import holds, output_folder
from dive_fast.settings import Settings, Within
from dive_fast.types import InputError, from_dict, to_dict

if TYPE_CHECKING:
    from dive_fast.models.bundle import ModelBundle

RECORD = "decoder.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class TinyDecoder(Settings):
    """The record of a tiny decoder of `width` channels, 0 for one convolution: the autoencoder that it belongs to, and the
    PSNR in dB of its images to that one's."""

    autoencoder: str
    width: Annotated[int, Within(0, 4096)]
    psnr: float
    metadata: dict[str, Any] = field(default_factory=dict)


def autoencoder_fingerprint(vae: Any) -> str:
    """Hex SHA-256 of an autoencoder's weights and scale."""
    return fingerprint_of(float(vae.config.scaling_factor), vae.state_dict())


def new_tiny(vae: Any, width: int) -> Any:
    """Returns an untrained AutoencoderTiny of `width` channels for the latents of `vae`; its encoder is not used.

    With `width` 0 it is a module that has nothing but a `decoder`, the one convolution, which begins as grey.
    """
    levels = len(vae.config.block_out_channels)
    if width == 0:
        return _one_convolution(vae.config.latent_channels, 2 ** (levels - 1))
    from diffusers import AutoencoderTiny

    blocks = (3,) * (levels - 1) + (1,)
    return AutoencoderTiny(
        latent_channels=vae.config.latent_channels,
        decoder_block_out_channels=(width,) * levels,
        num_decoder_blocks=blocks,
        encoder_block_out_channels=(8,) * levels,
        num_encoder_blocks=(1,) * levels,
    )


def _one_convolution(channels: int, factor: int) -> Any:
    import torch

    convolution = torch.nn.Conv2d(channels, 3 * factor**2, 3, padding=1)
    for parameter in convolution.parameters():
        torch.nn.init.zeros_(parameter)
    tiny = torch.nn.Module()
    tiny.decoder = torch.nn.Sequential(convolution, torch.nn.PixelShuffle(factor))
    return tiny


def save_tiny(tiny: Any, record: TinyDecoder, out: Path) -> None:
    """Writes the folder whole or not at all; another decoder there raises `InputError`."""
    import json

    with output_folder(out, holds(RECORD)) as folder:
        if record.width:
            config = {k: v for k, v in json.loads(tiny.to_json_string()).items() if k != "_name_or_path"}
            write_json(folder / "config.json", config)
        write_tensors(folder / _WEIGHTS, tiny.state_dict())
        write_json(folder / RECORD, to_dict(record))


def read_record(folder: Path) -> TinyDecoder | None:
    """Reads the record; None for a folder that holds none. A damaged one raises `InputError`."""
    path = folder / RECORD
    return from_dict(TinyDecoder, read_json(path, "decoder"), str(path)) if path.is_file() else None


def with_tiny_decoder(bundle: ModelBundle, folder: Path) -> tuple[ModelBundle, TinyDecoder]:
    """Returns the model with the tiny decoder in `folder` for its own, and the decoder's record.

    The result is another model with another fingerprint, as its images are others; the encoder stays. A decoder of another
    autoencoder, or a damaged one, raises `InputError`.
    """
    import torch
    from safetensors.torch import load_file

    record = read_record(folder)
    if record is None:
        raise InputError(f"--decoder {folder} has no {RECORD}; give a folder that dive-fast distil-decoder wrote")
    if record.autoencoder != autoencoder_fingerprint(bundle.vae):
        raise InputError(f"--decoder {folder} belongs to another autoencoder; distil one of this model's")
    check_safetensors(folder / _WEIGHTS)
    with torch.device("meta"):
        tiny = new_tiny(bundle.vae, record.width)
    filled(tiny, load_file(folder / _WEIGHTS), f"--decoder {folder}", "distil it again")
    return replace(bundle, vae=with_decoder(bundle.vae, tiny.decoder)), record


def with_decoder(vae: Any, decoder: Any) -> Any:
    """Returns the autoencoder with a decoder of scaled latents; the 1x1 convolution before it scales them."""
    import torch

    channels = vae.config.latent_channels
    scale = torch.nn.Conv2d(channels, channels, 1)
    with torch.no_grad():
        scale.weight.copy_(float(vae.config.scaling_factor) * torch.eye(channels)[:, :, None, None])
        scale.bias.zero_()  # type: ignore[union-attr]
    found = copy.deepcopy(vae)
    found.post_quant_conv, found.decoder = scale, decoder
    return found.eval().requires_grad_(False)
