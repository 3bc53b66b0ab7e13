"""Distils a model's decoder into a tiny one, on the latents of its own images: resumable, kill-safe, without photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.distil.blocks import Blocks
from dive_fast.distil.config import DecoderConfig
from dive_fast.distil.learner import Learner, forecast
from dive_fast.distil.likeness import psnr
from dive_fast.distil.trajectories import HELD_OUT, Drawings, check_fused
from dive_fast.io import sha256_bytes
from dive_fast.models.tiny_decoder import (
    RECORD,
    TinyDecoder,
    autoencoder_fingerprint,
    new_tiny,
    read_record,
    save_tiny,
)
from dive_fast.sampling.config import SD15
from dive_fast.train.loop import Loss, PhaseConfig
from dive_fast.train.photos import image_size, latent_shape, to_pixels, to_signal
from dive_fast.train.run import Run, check_training, deciding, training_folder, work_bytes

if TYPE_CHECKING:
    import torch

    from dive_fast.distil.blocks import Rows
    from dive_fast.models.bundle import ModelBundle
    from dive_fast.train.dryrun import Forecast

PHASE = "decoder"
LATENTS, PIXELS = "latents", "pixels"


class DecoderTrainer(Learner):
    """A tiny decoder on `device`, and the images of a fused model that it learns from.

    They are scaled latents float16 [N, C, h, w], and the pixels of the model's own decoder uint8 [N, H, W, 3].
    """

    config: DecoderConfig
    examples, making = "images", "sampling images"

    def __init__(self, bundle: ModelBundle, config: DecoderConfig, device: str = "cpu") -> None:
        import torch

        self.bundle, self.config, self.order, self.device = bundle, config, config.seed, device
        own, precision = bundle.sampling or SD15, config.compute.mixed_precision
        self.drawings = Drawings(bundle, own, precision, config.seed)
        self.prompts = len(self.drawings.keys)
        run = sha256_bytes(repr((bundle.fingerprint, (own, config.seed, precision))).encode())
        kinds = {LATENTS: ("float16", latent_shape(bundle)), PIXELS: ("uint8", (*image_size(bundle), 3))}
        self.blocks = Blocks("images", run, config.images + HELD_OUT, kinds, self._draw)
        torch.manual_seed(config.seed)
        self.tiny = new_tiny(bundle.vae, config.width)
        self.networks = [bundle.text_encoder, bundle.unet, self.tiny.decoder]
        for network in self.networks:
            network.to(device)

    def _draw(self, positions: Sequence[int]) -> Rows:
        latents = self.drawings.latents(positions).half()
        return {LATENTS: latents, PIXELS: self.drawings.decode(latents, self.config.batch)}

    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.tiny.decoder.parameters())

    def error(self, made: Rows, positions: Sequence[int]) -> Loss:
        """Returns the absolute plus squared error to the pixels of the images at these positions."""
        rows = list(positions)
        pixels = self.tiny.decoder(made[LATENTS][rows].to(self.device).float()).float()
        error = pixels - to_signal(made[PIXELS][rows].numpy()).to(self.device)
        return error.abs().mean() + error.square().mean(), {}

    def psnr(self, made: Rows) -> float:
        """Measures the decoder on the held-out images."""
        import torch

        held = list(self.held)
        parts = made[LATENTS][held].split(8)
        with torch.no_grad():
            pixels = [torch.from_numpy(to_pixels(self.tiny.decoder(x.to(self.device).float()))) for x in parts]
        return psnr(torch.cat(pixels), made[PIXELS][held])

    def disk_bytes(self) -> int:
        """Returns the bytes of images, states, the decoder and logs at most."""
        decoder = sum(parameter.nbytes for parameter in self.parameters())
        return self.blocks.nbytes + work_bytes(self.config, decoder, self.config.steps) + decoder


def distil_decoder(
    bundle: ModelBundle, out: Path, config: DecoderConfig, progress: bool = True, device: str = "cpu"
) -> TinyDecoder:
    """Distils a tiny decoder from that of the fused model `bundle`; writes the folder `out` and returns its record.

    The loss is absolute plus squared error to the own decoder's pixels. `out` appears whole at the end; `out`.training holds
    the images, the loss log and the state from which a rerun resumes. A model without prompts, and a folder of anything
    else, raise `InputError`; a full disk `DiveError`.
    """
    run = _run(bundle, out, config, device, progress)
    if not run.resume():
        trainer = DecoderTrainer(bundle, config, device)
        with run.working(trainer.disk_bytes()):
            images = trainer.blocks.kept(run.work, progress)
            trainer.learn(run, images)
            metadata = {**asdict(config), "run": run.id}
            made = TinyDecoder(autoencoder_fingerprint(bundle.vae), config.width, trainer.psnr(images), metadata)
            run.save(lambda: save_tiny(trainer.tiny.cpu(), made, out))
    record = read_record(out)
    assert record is not None  # it is saved by now
    return record


def dry_run(bundle: ModelBundle, out: Path, config: DecoderConfig, device: str = "cpu") -> Forecast:
    """Estimates the cost of `distil_decoder` with these arguments from a few images and steps; writes nothing.

    `bundle` is changed in place. Raises what `distil_decoder` raises before any work.
    """
    run = _run(bundle, out, config, device, progress=False)
    return forecast(run, lambda: DecoderTrainer(bundle, config, device), device)


def _run(bundle: ModelBundle, out: Path, config: DecoderConfig, device: str, progress: bool) -> Run:
    check_fused(bundle)
    check_training(config, device)
    run = sha256_bytes(repr((bundle.fingerprint, bundle.sampling, deciding(config))).encode())
    phase = PhaseConfig.of(config, PHASE, training_folder(out), config.steps, config.lr, run, progress)
    return Run(out, run, RECORD, (phase,))
