"""Pictures from a model in training: sheets of the same people through the same cameras, to see how far learning is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from dive_fast.io import atomic_path
from dive_fast.models.prompts import PromptEncoder
from dive_fast.sampling import Schedule, dpmpp_2m, guided, initial_noise, repeated
from dive_fast.train.photos import latent_size, visiting
from dive_fast.train.precision import Precision, autocast

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dive_fast.models.bundle import ModelBundle

_HEADER, _MARGIN, _GAP = 16, 72, 2
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class Samples:
    """How images are sampled during training, and how often a sheet of them is made."""

    sheet_every: int = 0  # steps; 0: never
    sheet_people: int = 4  # spread evenly over all
    sample_steps: int = 20
    sample_guidance: float = 2.0  # Stable Diffusion 1.5: 7.5


@dataclass(frozen=True)
class Sampler:
    """Samples from a bundle as it is now, on the device where its UNet is; nothing in it changes."""

    bundle: ModelBundle
    precision: Precision
    steps: int
    guidance: float

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [U, L, D] of token ids int64 [U, L]."""
        import torch

        device = self.bundle.unet.device
        with torch.no_grad(), autocast(self.precision, device):
            embeddings: torch.Tensor = self.bundle.text_encoder(ids.to(device)).last_hidden_state
        return embeddings

    def latents(self, text: torch.Tensor, index: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Scaled latents float32 [B, C, h, w] on the CPU of the prompts `index` int64 [B], one for each seed.

        `text` [U, L, D] are embeddings, the empty prompt's first.
        """
        import torch

        unet = self.bundle.unet
        height, width = latent_size(self.bundle)

        def eps_rows(latents: torch.Tensor, timestep: int, rows: torch.Tensor) -> torch.Tensor:
            with autocast(self.precision, unet.device):
                output: torch.Tensor = unet(repeated(latents, len(rows)), timestep, text[rows]).sample
            return output.float()

        with torch.no_grad():
            noise = initial_noise(seeds, (int(unet.config.in_channels), height, width)).to(unet.device)
            schedule = Schedule.from_config(self.bundle.scheduler_config, self.steps)
            return dpmpp_2m(guided(eps_rows, index.to(unet.device), 0, self.guidance), noise, schedule).cpu()

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Pixels uint8 [B, H, W, 3] of scaled latents; the VAE visits the UNet's device for it, in float32."""
        import torch

        vae, device = self.bundle.vae, self.bundle.unet.device
        with torch.no_grad(), visiting(vae, device):
            images = vae.decode(latents.to(device) / float(vae.config.scaling_factor)).sample
        pixels = images.float().add(1).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
        return pixels.to("cpu", torch.uint8).numpy()


class SheetMaker:
    """Makes the sheets of one run, of some `people`: each one's images start from one noise, the same on every sheet."""

    def __init__(self, sampler: Sampler, prompts: PromptEncoder, people: int) -> None:
        known, self.cameras = prompts.table.identities, [camera.name for camera in prompts.table.cameras]
        count = min(people, len(known))
        self.pids = [known[i * len(known) // count].pid for i in range(count)]
        self._sampler, self._prompts = sampler, prompts

    def write(self, out: Path) -> None:
        """Samples a sheet from the model as it is now and writes the PNG file `out`."""
        rows = [self._row(pid, number) for number, pid in enumerate(self.pids)]
        with atomic_path(out) as temporary:
            _drawn(rows, self.pids, self.cameras).save(temporary, format="png")

    def _row(self, pid: str, seed: int) -> np.ndarray:
        keys = [None, *((pid, camera) for camera in self.cameras)]
        text, index = self._prompts.encode(self._sampler.text, keys)
        latents = self._sampler.latents(text, index[1:], [seed] * len(self.cameras))
        return self._sampler.decode(latents)


def _drawn(rows: Sequence[np.ndarray], names: Sequence[str], cameras: Sequence[str]) -> Image.Image:
    """One sheet of rows of images uint8 [columns, H, W, 3], with the names of rows and columns."""
    height, width = rows[0].shape[1:3]
    sheet = Image.new("RGB", (_MARGIN + len(cameras) * (width + _GAP), _HEADER + len(rows) * (height + _GAP)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, camera in enumerate(cameras):
        pen.text((_MARGIN + column * (width + _GAP) + 2, 2), camera, fill=_INK)
    for row, (name, images) in enumerate(zip(names, rows, strict=True)):
        top = _HEADER + row * (height + _GAP)
        pen.text((2, top + height // 2), name, fill=_INK)
        for column, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (_MARGIN + column * (width + _GAP), top))
    return sheet
