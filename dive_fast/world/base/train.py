"""`dive-fast world train-base`: trains the pocket base model from nothing, in resumable phases.

images -> encoder, decoder -> latents -> text encoder -> UNet -> a Stable Diffusion 1.5 folder in fp16, with loss curves, the
autoencoder's report and a sheet of samples. With a base to start from, only its UNet trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dive_fast.distributed import check_launcher, first_rank_first, leading
from dive_fast.io import atomic_write, sha256_bytes, write_json
from dive_fast.models.bundle import ModelBundle, is_written_here, load_bundle, save_bundle
from dive_fast.models.files import kept_tensors
from dive_fast.outputs import check_same, output_folder
from dive_fast.sampling.config import Sampling
from dive_fast.train.curves import Curve, plot_curves
from dive_fast.train.parallel import my_rows
from dive_fast.train.precision import check_precision
from dive_fast.train.samples import ImageSampler
from dive_fast.types import InputError
from dive_fast.world.base.config import BaseTrainConfig
from dive_fast.world.base.data import cached_images, render_base_images
from dive_fast.world.base.fit import RECORD
from dive_fast.world.base.model import SCHEDULER_CONFIG, build_tokenizer
from dive_fast.world.base.text_train import token_ids, train_text_encoder
from dive_fast.world.base.unet_train import train_unet
from dive_fast.world.base.vae_train import encode_latents, evaluate_vae, save_grid, start_vae, train_decoder

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL

_VAE_SEED, _UNET_SEED, _SAMPLE_SEED = 1, 2, 3  # of the rendered identities


def train_base(
    config: BaseTrainConfig, out: Path, work: Path, device: str = "cpu", overwrite: bool = False
) -> dict[str, Any]:
    """Trains the base in `work`, writes the model to `out` and returns the autoencoder's PSNR.

    A rerun continues from the last state in `work`; a `work` of another config raises `InputError`, and so does another
    model at `out` without `overwrite`. In a process group all ranks share each batch, and the first one does the rest.
    """
    import torch

    check_same(out, is_written_here, RECORD, asdict(config), overwrite)
    check_precision(config.unet.precision, device)
    check_launcher(config.unet.precision, "--unet-precision")
    for network in (config.vae, config.text, config.unet):
        my_rows(network.batch)  # refuses one that the processes cannot share, before hours of work
    with first_rank_first():
        start = None if config.init_from is None else load_bundle(config.init_from)
        _claim(work, config, start)
    bundle = _train(config, work, device, start)
    if not leading():
        return {}
    report = evaluate_vae(bundle.vae, work / "autoencoder.png")
    with output_folder(out, is_written_here, overwrite) as fresh:
        save_bundle(bundle, fresh, dtype=torch.float16)
        _write_pictures(bundle, work, fresh)
        write_json(fresh / RECORD, {"config": asdict(config), "autoencoder": report})
    return report


def _train(config: BaseTrainConfig, work: Path, device: str, start: ModelBundle | None) -> ModelBundle:
    """Trains all networks, or text encoder and UNet of `start` on photos of other identities than any training before."""
    with first_rank_first():
        tokenizer = build_tokenizer(work / "tokenizer", config.shape)
    vae = _new_vae(config, work, device) if start is None else start.vae
    # A base that continues, perhaps for the second time, sees other identities.
    seed = _UNET_SEED if start is None else int(start.fingerprint[:8], 16)
    captions, latents = _photos(seed, config, vae, work)
    old = None if start is None else (start.tokenizer, start.text_encoder)
    text_encoder = train_text_encoder(captions, tokenizer, config.shape, config.text, work, device, old)
    old_unet = None if start is None else start.unet
    unet = train_unet(latents, captions, tokenizer, text_encoder, config.shape, config.unet, work, device, old_unet)
    scheduler = {"_class_name": "PNDMScheduler", **SCHEDULER_CONFIG}
    return ModelBundle(tokenizer, text_encoder, unet, vae, scheduler, sampling=Sampling())


def _new_vae(config: BaseTrainConfig, work: Path, device: str) -> AutoencoderKL:
    with first_rank_first():
        images = cached_images(
            work / "vae-images.npz", _VAE_SEED, config.vae_images, monochrome_fraction=0.35, noise_fraction=0.3
        ).images
        vae = start_vae(images, config.shape, config.vae.seed, work / "vae-start.safetensors")
    train_decoder(vae, images, config.shape, config.vae, work, device)
    return vae


def _photos(seed: int, config: BaseTrainConfig, vae: AutoencoderKL, work: Path) -> tuple[list[str], torch.Tensor]:
    """The UNet's captions and scaled latents float32 [N, C, h, w], stored in `work`."""
    path = work / "latents.safetensors"

    def encoded() -> dict[str, torch.Tensor]:
        latents = encode_latents(vae, photos.images, config.unet.precision, progress=True)
        return {"latents": latents * vae.config.scaling_factor}

    with first_rank_first():
        photos = cached_images(
            work / "unet-images.npz",
            seed,
            config.unet_images,
            monochrome_fraction=config.monochrome,
            noise_fraction=0.5,
        )
        return photos.captions, kept_tensors(path, encoded)["latents"]


def _write_pictures(bundle: ModelBundle, work: Path, out: Path) -> None:
    """Writes loss curves, the autoencoder's sheet, and samples of captions of unseen identities."""
    panels = [  # one for each trained network
        Curve(work / "decoder-loss.jsonl", "psnr", "decoder: PSNR, dB"),
        Curve(work / "text-loss.jsonl", "recall", "text encoder: recall"),
        Curve(work / "unet-loss.jsonl", "loss", "UNet: v MSE"),
    ]
    plot_curves([curve for curve in panels if curve.log.exists() and curve.log.stat().st_size], out / "losses.png")
    unseen = render_base_images(_SAMPLE_SEED, 12, monochrome_fraction=0.5, noise_fraction=0.0, workers=1)
    samples = sample_captions(bundle, unseen.captions, range(len(unseen.captions)))
    save_grid([unseen.images, samples], out / "samples.png")
    write_json(out / "sample-captions.json", unseen.captions)
    atomic_write(out / "autoencoder.png", (work / "autoencoder.png").read_bytes())


def _claim(work: Path, config: BaseTrainConfig, start: ModelBundle | None) -> None:
    """Ties a work folder to one config but for what changes no step: step counts, saved states and compilation."""
    description = asdict(config) | {"init_from": start.fingerprint if start is not None else None}
    for network in ("vae", "text", "unet"):
        for name in ("steps", "save_every", "compile"):
            description[network].pop(name, None)
    identity = sha256_bytes(repr(description).encode())
    path = work / "config.sha256"
    if path.exists() and path.read_text().strip() != identity:
        raise InputError(f"{work} holds a run of another config; choose another --work or delete it")
    atomic_write(path, identity + "\n")


def sample_captions(
    bundle: ModelBundle, captions: Sequence[str], seeds: Sequence[int], steps: int = 25, guidance: float = 3.0
) -> np.ndarray:
    """Returns images uint8 [B, H, W, 3] of captions from an unfused base."""
    import torch

    sampler = ImageSampler(bundle, "no", steps, guidance)
    text = sampler.text(token_ids(bundle.tokenizer, ["", *captions]))
    return sampler.decode(sampler.latents(text, torch.arange(1, len(captions) + 1), seeds))
