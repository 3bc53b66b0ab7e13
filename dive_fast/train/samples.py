"""Images sampled from a model in training, and sheets of the same identities in every camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dive_fast.io import atomic_encode
from dive_fast.models.prompts import PromptEncoder
from dive_fast.sampling import Schedule, dpmpp_2m, guided, initial_noise, repeated
from dive_fast.train.config import Precision
from dive_fast.train.contact_sheet import contact_sheet
from dive_fast.train.photos import latent_shape, on_device, to_pixels
from dive_fast.train.precision import autocast

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dive_fast.models.bundle import ModelBundle
    from dive_fast.sampling import OnStep

_MARGIN = 72


@dataclass(frozen=True)
class ImageSampler:
    """Samples images from a bundle in its current state, on its UNet's device; changes nothing in it."""

    bundle: ModelBundle
    precision: Precision
    steps: int
    guidance: float

    def text(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns embeddings [U, L, D] of token ids int64 [U, L]."""
        import torch

        device = self.bundle.unet.device
        with torch.no_grad(), autocast(self.precision, device):
            embeddings: torch.Tensor = self.bundle.text_encoder(ids.to(device)).last_hidden_state
        return embeddings

    def latents(
        self, text: torch.Tensor, index: torch.Tensor, seeds: Sequence[int], on_step: OnStep | None = None
    ) -> torch.Tensor:
        """Returns scaled latents float32 [B, C, h, w] on the CPU for the prompts `index` int64 [B] and their `seeds`.

        `text` [U, L, D] are embeddings; the first is that of the empty prompt. `on_step` as of `dpmpp_2m`.
        """
        import torch

        unet = self.bundle.unet

        def eps_rows(latents: torch.Tensor, timestep: int, rows: torch.Tensor) -> torch.Tensor:
            with autocast(self.precision, unet.device):
                output: torch.Tensor = unet(repeated(latents, len(rows)), timestep, text[rows]).sample
            return output.float()

        with torch.no_grad():
            noise = initial_noise(seeds, latent_shape(self.bundle)).to(unet.device)
            schedule = Schedule.from_config(self.bundle.scheduler_config, self.steps)
            eps = guided(eps_rows, index.to(unet.device), 0, self.guidance)
            return dpmpp_2m(eps, noise, schedule, on_step=on_step).cpu()

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Returns pixels uint8 [B, H, W, 3] of scaled latents, decoded in float32 on the UNet's device."""
        import torch

        vae, device = self.bundle.vae, self.bundle.unet.device
        with torch.no_grad(), on_device(vae, device):
            return to_pixels(vae.decode(latents.to(device) / float(vae.config.scaling_factor)).sample)


def write_sheet(sampler: ImageSampler, prompts: PromptEncoder, identities: int, out: Path) -> None:
    """Samples some identities, spread evenly, in every camera and writes the PNG file `out`.

    An identity's images start from equal noise in all cameras and on every sheet.
    """
    known, cameras = prompts.table.identities, [camera.name for camera in prompts.table.cameras]
    count = min(identities, len(known))
    pids = [known[i * len(known) // count].pid for i in range(count)]
    rows = []
    for seed, pid in enumerate(pids):
        text, index = prompts.encode(sampler.text, [None, *prompts.table.keys([pid])])
        rows.append(list(sampler.decode(sampler.latents(text, index[1:], [seed] * len(cameras)))))
    sheet = contact_sheet(rows, pids, cameras, _MARGIN)
    atomic_encode(out, lambda stream: sheet.save(stream, format="png"))
