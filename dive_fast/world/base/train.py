"""`dive-fast world train-base`: the pocket base model from nothing, on a GPU or patiently on a CPU, in resumable stages.

images -> encoder, decoder -> latents -> text encoder -> UNet -> a Stable Diffusion 1.5 folder in fp16, with its loss
curves, its autoencoder's report and a sheet of samples beside it. Or, from a base that is there, the UNet alone learns on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.distributed import first_rank_first, leading
from dive_fast.io import atomic_path, sha256_bytes, write_json
from dive_fast.types import InputError
from dive_fast.world.base.data import cached_images, render_base_images
from dive_fast.world.base.model import SCHEDULER_CONFIG, BaseShape, build_tokenizer
from dive_fast.world.base.report import plot_losses, sample_sheet
from dive_fast.world.base.text_train import TextConfig, token_ids, train_text_encoder
from dive_fast.world.base.unet_train import UnetConfig, train_unet
from dive_fast.world.base.vae_train import VaeConfig, encode_latents, judge, start_vae, train_decoder

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

    from dive_fast.models.bundle import ModelBundle

_VAE_SEED, _UNET_SEED, _JUDGE_SEED, _MORE_SEED = 1, 2, 3, 4  # of the rendered identities


@dataclass(frozen=True)
class BaseTrainConfig:
    """Everything the pocket base depends on.

    `unet_grey` is the share of grey photos among the UNet's. Stable Diffusion has seen them by the million; a UNet that
    has not must learn from a LoRA, of some tens of people, what a picture without colour looks like (docs/log.md).
    Luma through a tone curve tells nothing of infrared (`random_grey_camera`). With `start`, a base model, its
    autoencoder and text encoder stay as they are and its UNet goes on learning, from photos of other people.
    """

    shape: BaseShape = field(default_factory=BaseShape)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    unet: UnetConfig = field(default_factory=UnetConfig)
    vae_images: int = 20000
    unet_images: int = 100000
    unet_grey: float = 0.35
    start: str | None = None


def train_base(config: BaseTrainConfig, out: Path, work: Path, device: str = "cpu") -> dict[str, Any]:
    """Trains the base in `work` and writes the model to `out`; returns what was measured on the way.

    A rerun continues from the last state in `work`; a `work` of another config raises `InputError`. In a process group
    the ranks share every batch, and the first one does the rest.
    """
    from dive_fast.models.bundle import load_bundle, save_bundle

    with first_rank_first():
        start = None if config.start is None else load_bundle(config.start)
        _claim(work, config, start)
    bundle = _new_base(config, work, device) if start is None else _continued(start, config, work, device)
    if not leading():
        return {}
    report = judge(bundle.vae, work / "autoencoder.png")
    save_bundle(bundle, out, dtype=_half())
    _report(bundle, work, out)
    write_json(out / "training.json", {"config": asdict(config), "autoencoder": report})
    return report


def _new_base(config: BaseTrainConfig, work: Path, device: str) -> ModelBundle:
    """All stages, from nothing."""
    from dive_fast.models.bundle import ModelBundle

    with first_rank_first():
        tokenizer = build_tokenizer(work / "tokenizer", config.shape)
        pictures = cached_images(
            work / "vae-images.npz", _VAE_SEED, config.vae_images, grey_share=0.35, noise_share=0.3
        )
        vae = start_vae(pictures.images, config.shape, config.vae.seed, work / "vae-start.safetensors")
    train_decoder(vae, pictures.images, config.shape, config.vae, work, device)
    captions, latents = _photos(_UNET_SEED, config, vae, work)
    text_encoder = train_text_encoder(captions, tokenizer, config.shape, config.text, work, device)
    ids, empty = token_ids(tokenizer, captions), token_ids(tokenizer, [""])
    unet = train_unet(latents, ids, empty, text_encoder, config.shape, config.unet, work, device)
    return ModelBundle(tokenizer, text_encoder, unet, vae, {"_class_name": "PNDMScheduler", **SCHEDULER_CONFIG})


def _continued(start: ModelBundle, config: BaseTrainConfig, work: Path, device: str) -> ModelBundle:
    """The UNet of `start` learning on, from photos that it was not trained on."""
    captions, latents = _photos(_MORE_SEED, config, start.vae, work)
    ids, empty = token_ids(start.tokenizer, captions), token_ids(start.tokenizer, [""])
    unet = train_unet(latents, ids, empty, start.text_encoder, config.shape, config.unet, work, device, start.unet)
    return replace(start, unet=unet)


def _photos(seed: int, config: BaseTrainConfig, vae: AutoencoderKL, work: Path) -> tuple[list[str], torch.Tensor]:
    """The UNet's captions and scaled latents float32 [N, C, h, w], kept in `work`."""
    with first_rank_first():
        photos = cached_images(
            work / "unet-images.npz", seed, config.unet_images, grey_share=config.unet_grey, noise_share=0.5
        )
        return photos.captions, _scaled_latents(work / "latents.safetensors", vae, photos.images)


def _report(bundle: ModelBundle, work: Path, out: Path) -> None:
    """Loss curves, the autoencoder's sheet, and samples of captions of people who are in no training image."""
    plot_losses(work, out / "losses.png")
    unseen = render_base_images(_JUDGE_SEED, 12, grey_share=0.0, noise_share=0.0, workers=1)
    made = sample_captions(bundle, unseen.captions, range(len(unseen.captions)))
    sample_sheet(unseen.images, made, out / "samples.png")
    write_json(out / "sample-captions.json", unseen.captions)
    shutil.copyfile(work / "autoencoder.png", out / "autoencoder.png")


def _half() -> torch.dtype:
    import torch

    return torch.float16


def _claim(work: Path, config: BaseTrainConfig, start: ModelBundle | None) -> None:
    """Ties a work folder to one config (its step counts aside: a longer run may continue a shorter one)."""
    description = asdict(config) | {"start": start.fingerprint if start is not None else None}
    for stage in ("vae", "text", "unet"):
        for name in ("steps", "save_every"):
            description[stage].pop(name)
    identity = sha256_bytes(repr(description).encode())
    path = work / "config.sha256"
    if path.exists() and path.read_text().strip() != identity:
        raise InputError(f"{work} holds a run of another config; choose another --work or delete it")
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(identity + "\n")


def _scaled_latents(path: Path, vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Scaled latents float32 [N, C, h, w], kept in `path`."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        latents = encode_latents(vae, images) * vae.config.scaling_factor
        with atomic_path(path) as temporary:
            save_file({"latents": latents}, temporary)
    return load_file(path)["latents"]


def sample_captions(
    bundle: Any, captions: Sequence[str], seeds: Sequence[int], steps: int = 25, guidance: float = 3.0
) -> np.ndarray:
    """Images uint8 [B, H, W, 3] of free captions from an unfused base: what the sample sheet shows."""
    import torch

    from dive_fast.sampling import Schedule, dpmpp_2m, guided, initial_noise, repeated

    config = bundle.unet.config
    with torch.inference_mode():
        text = bundle.text_encoder(token_ids(bundle.tokenizer, ["", *captions])).last_hidden_state
        noise = initial_noise(seeds, (config.in_channels, *config.sample_size))

        def eps_rows(latents: torch.Tensor, timestep: int, index: torch.Tensor) -> torch.Tensor:
            return bundle.unet(repeated(latents, len(index)), timestep, text[index]).sample

        index = torch.arange(1, len(captions) + 1)
        latents = dpmpp_2m(
            guided(eps_rows, index, 0, guidance), noise, Schedule.from_config(bundle.scheduler_config, steps)
        )
        images = bundle.vae.decode(latents / bundle.vae.config.scaling_factor).sample
    return ((images / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
