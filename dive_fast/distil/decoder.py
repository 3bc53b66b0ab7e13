"""Distils a model's decoder into a tiny one, on the latents of its own images: resumable, kill-safe, without photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.distil.blocks import Blocks
from dive_fast.distil.config import DecoderConfig
from dive_fast.distil.learner import Learner, MadeForecast, begin_run, forecast
from dive_fast.distil.likeness import psnr
from dive_fast.distil.trajectories import HELD_OUT, check_fused, noise_seeds, prompt_rows
from dive_fast.io import sha256_bytes
from dive_fast.models.prompts import PromptEncoder
from dive_fast.models.tiny_decoder import (
    RECORD,
    TinyDecoder,
    autoencoder_fingerprint,
    new_tiny,
    read_record,
    save_tiny,
)
from dive_fast.sampling.config import SD15
from dive_fast.train.loop import Loss
from dive_fast.train.photos import image_size, latent_shape, to_pixels, to_signal
from dive_fast.train.run import Run, check_training, deciding, log_and_state_bytes
from dive_fast.train.samples import ImageSampler

if TYPE_CHECKING:
    import torch

    from dive_fast.models.bundle import ModelBundle

PHASE = "decoder"
LATENTS, PIXELS = "latents", "pixels"


class ImagesForecast(MadeForecast):
    """A dry run of `distil_decoder`."""

    examples = data = "images"
    making = "sample images"


class DecoderTrainer(Learner[Mapping[str, "torch.Tensor"]]):
    """A tiny decoder on `device`, and the images of a fused model that it learns from.

    They are scaled latents float16 [N, C, h, w], and the pixels of the model's own decoder uint8 [N, H, W, 3].
    """

    config: DecoderConfig

    def __init__(self, bundle: ModelBundle, config: DecoderConfig, device: str = "cpu") -> None:
        import torch

        assert bundle.prompts is not None  # `check_fused` refuses other models
        self.bundle, self.config, self.order, self.device = bundle, config, config.seed, device
        own, precision = bundle.sampling or SD15, config.compute.mixed_precision
        self.sampler = ImageSampler(bundle, precision, own.steps, own.guidance)
        self.encoder, self.keys = PromptEncoder(bundle.tokenizer, bundle.prompts), bundle.prompts.keys()
        self.prompts = len(self.keys)
        run = sha256_bytes(repr((bundle.fingerprint, (own, config.seed, precision))).encode())
        kinds = {
            LATENTS: (torch.float16, latent_shape(bundle)),
            PIXELS: (torch.uint8, (*image_size(bundle), 3)),
        }
        self.blocks = Blocks("images", run, config.images + HELD_OUT, kinds, self._make)
        torch.manual_seed(config.seed)
        self.tiny = new_tiny(bundle.vae, config.width)
        for network in self.networks():
            network.to(device)

    def _make(self, positions: Sequence[int]) -> dict[str, torch.Tensor]:
        import torch

        seed = self.config.seed
        chosen = (self.keys[row] for row in prompt_rows(positions, len(self.keys), seed))
        text, index = self.encoder.encode(self.sampler.text, [None, *chosen])
        latents = self.sampler.latents(text, index[1:], noise_seeds(positions, seed)).half()
        parts = [torch.from_numpy(self.sampler.decode(part.float())) for part in latents.split(self.config.batch)]
        return {LATENTS: latents, PIXELS: torch.cat(parts)}

    def networks(self) -> list[torch.nn.Module]:
        return [self.bundle.text_encoder, self.bundle.unet, self.tiny.decoder]

    def read(self, made: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return made

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.tiny.decoder.parameters())

    def error(self, data: Mapping[str, torch.Tensor], positions: Sequence[int]) -> Loss:
        """Returns the absolute plus squared error to the pixels of the images at these positions."""
        rows = list(positions)
        made = self.tiny.decoder(data[LATENTS][rows].to(self.device).float()).float()
        error = made - to_signal(data[PIXELS][rows].numpy()).to(self.device)
        return error.abs().mean() + error.square().mean(), {}

    def psnr(self, data: Mapping[str, torch.Tensor]) -> float:
        """Measures the decoder on the held-out images."""
        import torch

        held = list(self.held)
        parts = data[LATENTS][held].split(8)
        with torch.no_grad():
            made = [torch.from_numpy(to_pixels(self.tiny.decoder(x.to(self.device).float()))) for x in parts]
        return psnr(torch.cat(made), data[PIXELS][held])

    def disk_bytes(self) -> int:
        """Returns the bytes of images, states, the decoder and logs at most."""
        decoder = sum(parameter.nbytes for parameter in self.parameters())
        return self.blocks.nbytes + log_and_state_bytes(self.config, decoder, self.config.steps) + decoder


def distil_decoder(
    bundle: ModelBundle, out: Path, config: DecoderConfig, progress: bool = True, device: str = "cpu"
) -> TinyDecoder:
    """Distils a tiny decoder from that of the fused model `bundle`; writes the folder `out` and returns its record.

    The loss is absolute plus squared error to the own decoder's pixels. `out` appears whole at the end; `out`.training holds
    the images, the loss log and the state from which a rerun resumes. A model without prompts, and a folder of anything
    else, raise `InputError`; a full disk `DiveError`.
    """
    run = _run(bundle, out, config, device, progress)
    if run.resume():
        return read_result(out)
    trainer = DecoderTrainer(bundle, config, device)
    with run.working(trainer.disk_bytes()):
        images = trainer.blocks.kept(run.work, progress)
        trainer.learn(run, images)
        metadata = {**asdict(config), "run": run.id}
        record = TinyDecoder(autoencoder_fingerprint(bundle.vae), config.width, trainer.psnr(images), metadata)
        run.save(lambda: save_tiny(trainer.tiny.cpu(), record, out))
    return record


def dry_run(bundle: ModelBundle, out: Path, config: DecoderConfig, device: str = "cpu") -> MadeForecast:
    """Estimates the cost of `distil_decoder` with these arguments from a few images and steps; writes nothing.

    `bundle` is changed in place. Raises what `distil_decoder` raises before any work.
    """
    run = _run(bundle, out, config, device, progress=False)
    return forecast(ImagesForecast, run, lambda: DecoderTrainer(bundle, config, device), device)


def _run(bundle: ModelBundle, out: Path, config: DecoderConfig, device: str, progress: bool) -> Run:
    check_fused(bundle)
    check_training(config, device)
    return begin_run(out, run_id(bundle, config), PHASE, config, RECORD, read_result, progress)


def read_result(out: Path) -> TinyDecoder:
    """Returns the record of a decoder's folder."""
    record = read_record(out)
    assert record is not None  # `Run` looks for the record before
    return record


def run_id(bundle: ModelBundle, config: DecoderConfig) -> str:
    """Returns the id of a run's model and settings; those that change results by rounding at most do not count."""
    return sha256_bytes(repr((bundle.fingerprint, bundle.sampling, deciding(config))).encode())
