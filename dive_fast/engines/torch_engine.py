"""The reference engine: diffusers' modules, eager, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dive_fast.engines.base import ROWS_MAX, Conditioning, EngineBase, Geometry, Kept, by_row
from dive_fast.io import canonical_json, sha256_bytes
from dive_fast.models.prompts import DEFAULT_TEMPLATE, PromptEncoder, PromptTable
from dive_fast.types import EngineSpec, InputError, Profile
from dive_fast.unet.graphs import depths, other_traits, split_call

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine(EngineBase):
    """Takes the bundle's modules over: they move to `device` and become `precision` in place."""

    backend = "torch"

    def __init__(
        self,
        bundle: ModelBundle,
        device: torch.device,
        precision: str = "fp32",
        size: tuple[int, int] | None = None,
        chosen: str = "asked for",
        guard: bool = False,
    ) -> None:
        """`size` is (height, width) in pixels, by default the UNet's own. Raises `InputError` when it does not fit."""
        geometry = Geometry.from_configs(bundle.unet.config, bundle.vae.config, "model")
        height, width = size or _own_size(bundle, geometry)
        misfits = geometry.misfits(height, width)
        if misfits:
            raise InputError(f"torch engine: {'; '.join(misfits)}; choose another size")
        model = bundle.fingerprint  # read before the weights change type: it is computed at the first use
        spec = EngineSpec(
            backend=self.backend,
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
            prompts=PromptEncoder(bundle.tokenizer, table),
            scheduler_config=bundle.scheduler_config,
            device=device,
            fingerprint=sha256_bytes(canonical_json([model, self.backend, precision]).encode()),
            geometry=geometry,
            runs_on=str(device) if spec.gpu is None else f"{device} ({spec.gpu})",
            chosen=chosen,
            guard=guard,
        )
        self.dtype = DTYPES[precision]
        self._last: dict[str, Callable[[], Tensor]] = {}  # the last call of each network, kept for the guard alone
        self._text_encoder, self._unet_module, self._vae = (
            _placed(module, device, self.dtype) for module in (bundle.text_encoder, bundle.unet, bundle.vae)
        )

    def condition(self, embeddings: Tensor) -> Conditioning:
        return Conditioning(embeddings.to(self.device, self.dtype))

    def _text(self, token_ids: Tensor) -> Tensor:
        ids = token_ids.to(self.device)
        return self._run("text_encoder", lambda: self._text_encoder(ids, return_dict=True).last_hidden_state)

    def _unet(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor) -> Tensor:
        sample, steps, hidden = self._by_row(latents, timestep, bank, prompt_index)
        return self._run("unet", lambda: self._unet_module(sample, steps, hidden, return_dict=False)[0])

    def _by_row(
        self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the UNet reads: sample [R, C, h, w], timestep [1], embeddings [R, L, D]."""
        sample, hidden = by_row(latents.to(self.dtype), bank, prompt_index)
        if self.device.type == "cuda":
            sample = sample.contiguous(memory_format=torch.channels_last)
        return sample, torch.full((1,), timestep, dtype=torch.int64, device=self.device), hidden

    @cached_property
    def depths(self) -> range:
        return range(0) if other_traits(self._unet_module) else depths(self._unet_module)

    def _unet_kept(self, latents: Tensor, timestep: int, bank: Tensor, prompt_index: Tensor, kept: Kept) -> Tensor:
        feeds, deep = self._by_row(latents, timestep, bank, prompt_index), kept.deep

        def call() -> Tensor:
            return keeping(split_call(self._unet_module, *feeds, deep, kept.depth), deep, kept)

        return self._run("unet", call)

    def _decoder(self, latents: Tensor) -> Tensor:
        given = latents.to(self.dtype)
        return self._run("vae_decoder", lambda: self._vae.decode(given, return_dict=False)[0])

    def _encoder(self, pixels: Tensor) -> Tensor:
        given = pixels.to(self.dtype)
        return self._run("vae_encoder", lambda: self._vae.encode(given).latent_dist.mean)

    @torch.inference_mode()
    def _run(self, network: str, call: Callable[[], Tensor], again: Callable[[], Tensor] | None = None) -> Tensor:
        """float32. `again` is the same by modules whose layers can be looked at, where `call` is not."""
        if self.guard:
            self._last[network] = again or call
        return call().float()

    def _module(self, network: str) -> nn.Module:
        """What holds the layers that a call of `network` goes through."""
        module: nn.Module = {"text_encoder": self._text_encoder, "unet": self._unet_module}.get(network, self._vae)
        return module

    @torch.inference_mode()
    def _first_bad_layer(self, network: str) -> str | None:
        """By running the last call again with an eye on every layer."""
        module = self._module(network)
        found: list[str] = []

        def look(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def hook(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
                if not found and isinstance(answer, Tensor) and not bool(answer.isfinite().all()):
                    before = all(bool(x.isfinite().all()) for x in given if isinstance(x, Tensor))
                    where = "is" if before else "is, with what it was given,"
                    found.append(f"{name} ({type(layer).__name__}) {where} the first that is not finite")

            return hook

        leaves = [(name, layer) for name, layer in module.named_modules() if not any(layer.children())]
        hooks = [layer.register_forward_hook(look(name)) for name, layer in leaves]
        try:
            self._last[network]()
        finally:
            for handle in hooks:
                handle.remove()
        return f"{found[0]}; use precision fp32 or bf16, or look at its weights" if found else None


def keeping(answer: Any, deep: Tensor | None, kept: Kept) -> Tensor:
    """The prediction out of what a split UNet answers to `deep`; deep features, where they are new, go to `kept`."""
    if deep is None:
        answer, kept.deep = answer
    out: Tensor = answer
    return out


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
