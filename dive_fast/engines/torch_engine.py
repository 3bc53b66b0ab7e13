"""The reference engine: diffusers' modules, eager, on a CPU or a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dive_fast.engines.base import Conditioning, EngineBase, Geometry, by_row
from dive_fast.io import canonical_json, sha256_bytes
from dive_fast.models.prompts import DEFAULT_TEMPLATE, PromptBank, PromptTable
from dive_fast.types import EngineSpec, InputError, Profile

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROWS_MAX = 1024  # memory is the real limit, and it is not known here


class TorchEngine(EngineBase):
    """Takes the bundle's modules over: they move to `device` and become `precision` in place."""

    def __init__(
        self,
        bundle: ModelBundle,
        device: torch.device,
        precision: str = "fp32",
        size: tuple[int, int] | None = None,
        chosen: str = "asked for",
    ) -> None:
        """`size` is (height, width) in pixels, by default the UNet's own. Raises `InputError` when it does not fit."""
        geometry = Geometry.from_configs(bundle.unet.config, bundle.vae.config, "model")
        height, width = size or _own_size(bundle, geometry)
        misfits = geometry.misfits(height, width)
        if misfits:
            raise InputError(f"torch engine: {'; '.join(misfits)}; choose another size")
        model = bundle.fingerprint  # read before the weights change type: it is computed at the first use
        spec = EngineSpec(
            backend="torch",
            precision=precision,
            profile=Profile(1, 32, ROWS_MAX, height, width),
            model_fingerprint=model,
            files={},
            versions={"torch": torch.__version__},
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        )
        table = bundle.prompts or PromptTable((), (), DEFAULT_TEMPLATE, model, "")
        super().__init__(
            spec=spec,
            prompts=PromptBank(bundle.tokenizer, table),
            scheduler_config=bundle.scheduler_config,
            device=device,
            fingerprint=sha256_bytes(canonical_json([model, "torch", precision]).encode()),
            geometry=geometry,
            runs_on=str(device) if spec.gpu is None else f"{device} ({spec.gpu})",
            chosen=chosen,
        )
        self.dtype = DTYPES[precision]
        self._text_encoder, self._unet_module, self._vae = (
            _placed(module, device, self.dtype) for module in (bundle.text_encoder, bundle.unet, bundle.vae)
        )

    def condition(self, embeddings: Tensor) -> Conditioning:
        return Conditioning(embeddings.to(self.device, self.dtype))

    @torch.inference_mode()
    def _text(self, token_ids: Tensor) -> Tensor:
        hidden: Tensor = self._text_encoder(token_ids.to(self.device), return_dict=True).last_hidden_state
        return hidden.float()

    @torch.inference_mode()
    def _unet(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor) -> Tensor:
        sample, hidden = by_row(latents.to(self.dtype), bank, prompt_index)
        if self.device.type == "cuda":
            sample = sample.contiguous(memory_format=torch.channels_last)
        steps = torch.full((1,), timestep, dtype=torch.int64, device=self.device)
        noise: Tensor = self._unet_module(sample, steps, hidden, return_dict=False)[0]
        return noise.float()

    @torch.inference_mode()
    def _decoder(self, latents: Tensor) -> Tensor:
        images: Tensor = self._vae.decode(latents.to(self.dtype), return_dict=False)[0]
        return images.float()

    @torch.inference_mode()
    def _encoder(self, pixels: Tensor) -> Tensor:
        mean: Tensor = self._vae.encode(pixels.to(self.dtype)).latent_dist.mean
        return mean.float()


def _placed(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """`module` on `device` in `dtype`; channels-last on a GPU, where tensor cores read convolutions that way.

    nn.Module's own `to`, as diffusers' warns of modules to be kept in float32 even where its list of them is empty.
    """
    nn.Module.to(module, device, dtype)
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module


def _own_size(bundle: ModelBundle, geometry: Geometry) -> tuple[int, int]:
    """(height, width) in pixels that the UNet was trained at; its config gives latents, one number or two."""
    sample = bundle.unet.config.sample_size
    height, width = (sample, sample) if isinstance(sample, int) else sample
    return height * geometry.vae_scale, width * geometry.vae_scale
