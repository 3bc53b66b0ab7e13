"""Distils a model's decoder into a tiny one, on the latents of its own images: resumable, kill-safe, without photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.data.prepare import check_space
from dive_fast.distil.blocks import kept_blocks
from dive_fast.distil.config import DecoderConfig
from dive_fast.distil.likeness import psnr
from dive_fast.distil.trajectories import HELD_OUT, check_fused, noise_seeds, prompt_rows
from dive_fast.distributed import first_rank_first
from dive_fast.io import clear_leftovers, sha256_bytes
from dive_fast.models.prompts import PromptEncoder
from dive_fast.models.tiny_decoder import (
    RECORD,
    TinyDecoder,
    autoencoder_fingerprint,
    new_tiny,
    read_record,
    save_tiny,
)
from dive_fast.outputs import check_place, holds
from dive_fast.sampling.config import SD15
from dive_fast.train.config import Compute
from dive_fast.train.loop import Loss, PhaseConfig, batch_indices, run_phase
from dive_fast.train.parallel import my_rows
from dive_fast.train.personalize import locked, remove_states, training_folder
from dive_fast.train.photos import image_size, latent_shape, to_pixels, to_signal
from dive_fast.train.precision import check_precision
from dive_fast.train.samples import ImageSampler
from dive_fast.types import InputError

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle

PHASE = "decoder"


def distil_decoder(
    bundle: ModelBundle, out: Path, config: DecoderConfig, progress: bool = True, device: str = "cpu"
) -> TinyDecoder:
    """Distils a tiny decoder from that of the fused model `bundle`; writes the folder `out` and returns its record.

    The loss is absolute plus squared error to the own decoder's pixels. `out` appears whole at the end; `out`.training holds
    the images, the loss log and the state from which a rerun resumes. A model without prompts, and a folder of anything
    else, raise `InputError`; a full disk `DiveError`.
    """
    import torch

    check_fused(bundle)
    check_precision(config.compute.mixed_precision, device)
    run, work = run_id(bundle, config), training_folder(out)
    done = finished_decoder(out, run)
    if done is not None:
        remove_states(work)
        clear_leftovers(out.parent.absolute())
        return done
    phase = PhaseConfig.of(config, PHASE, work, config.steps, config.lr, run, progress)
    phase.saved_state()
    with locked(out):
        check_space(out, _disk_bytes(bundle, config))
        for network in (bundle.text_encoder, bundle.unet):
            network.to(device)
        latents, pixels = _images(bundle, config, work, progress)
        torch.manual_seed(config.seed)
        tiny = new_tiny(bundle.vae, config.width).to(device)
        decoder = tiny.decoder

        def loss_at(step: int) -> Loss:
            rows = batch_indices(config.images, config.batch, step, config.seed)[my_rows(config.batch)].tolist()
            made = decoder(latents[rows].to(device).float()).float()
            error = made - to_signal(pixels[rows].numpy()).to(device)
            return error.abs().mean() + error.square().mean(), {}

        run_phase(phase, [{"params": list(decoder.parameters()), "weight_decay": 0.0}], loss_at)
        held = range(config.images, config.images + HELD_OUT)
        record = TinyDecoder(
            autoencoder_fingerprint(bundle.vae),
            config.width,
            psnr(_pixels(decoder, latents[list(held)], device), pixels[list(held)]),
            {**asdict(config), "run": run},
        )
        with first_rank_first():
            if finished_decoder(out, run) is None:
                save_tiny(tiny.cpu(), record, out)
                remove_states(work)
    return record


def finished_decoder(out: Path, run: str) -> TinyDecoder | None:
    """Returns the decoder that the run `run` finished in `out`, if any; another one raises `InputError`."""
    check_place(out, holds(RECORD))
    record = read_record(out)
    if record is not None and record.metadata.get("run") != run:
        raise InputError(f"{out} holds a decoder of another model or settings; choose another --out or delete it")
    return record


def run_id(bundle: ModelBundle, config: DecoderConfig) -> str:
    """Returns the id of a run's model and settings; those that change results by rounding at most do not count."""
    settings = replace(config, save_every=1, tensorboard=False, compute=Compute(config.compute.mixed_precision))
    return sha256_bytes(repr((bundle.fingerprint, bundle.sampling, settings)).encode())


def _images(
    bundle: ModelBundle, config: DecoderConfig, work: Path, progress: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's images: scaled latents float16 [N, C, h, w], and its own decoder's pixels uint8 [N, H, W, 3]."""
    import torch

    assert bundle.prompts is not None
    own = bundle.sampling or SD15
    sampler = ImageSampler(bundle, config.compute.mixed_precision, own.steps, own.guidance)
    prompts = PromptEncoder(bundle.tokenizer, bundle.prompts)
    keys = [(one.pid, camera.name) for one in bundle.prompts.identities for camera in bundle.prompts.cameras]

    def make(positions: Sequence[int]) -> dict[str, torch.Tensor]:
        chosen = (keys[row] for row in prompt_rows(positions, len(keys), config.seed))
        text, index = prompts.encode(sampler.text, [None, *chosen])
        latents = sampler.latents(text, index[1:], noise_seeds(positions, config.seed)).half()
        parts = [torch.from_numpy(sampler.decode(part.float())) for part in latents.split(config.batch)]
        return {"latents": latents, "pixels": torch.cat(parts)}

    settings = (own, config.seed, config.compute.mixed_precision)
    run = sha256_bytes(repr((bundle.fingerprint, settings)).encode())
    shapes = {"latents": latent_shape(bundle), "pixels": (*image_size(bundle), 3)}
    found = kept_blocks(work, "images", run, config.images + HELD_OUT, shapes, make, progress)
    return found["latents"], found["pixels"]


def _pixels(decoder: torch.nn.Module, latents: torch.Tensor, device: str) -> torch.Tensor:
    """Images uint8 [B, H, W, 3] of scaled latents."""
    import torch

    with torch.no_grad():
        return torch.cat([torch.from_numpy(to_pixels(decoder(x.to(device).float()))) for x in latents.split(8)])


def _disk_bytes(bundle: ModelBundle, config: DecoderConfig) -> int:
    """Bytes that a run writes at most: images, and states and the decoder, which are small."""
    latents, pixels = latent_shape(bundle), image_size(bundle)
    image = 2 * latents[0] * latents[1] * latents[2] + 3 * pixels[0] * pixels[1]
    decoder = sum(parameter.numel() for parameter in new_tiny(bundle.vae, config.width).parameters()) * 4
    return (config.images + HELD_OUT) * image + 9 * decoder
