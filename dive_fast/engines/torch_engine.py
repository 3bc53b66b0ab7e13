"""The reference engine: diffusers' modules, eager, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dive_fast.engines.base import ROWS_MAX, Conditioning, Engine, EngineBase, Geometry, row_inputs
from dive_fast.engines.registry import Choice
from dive_fast.io import canonical_json, sha256_bytes
from dive_fast.models.prompts import DEFAULT_TEMPLATE, PromptEncoder, PromptTable
from dive_fast.types import EngineSpec, InputError, Profile
from dive_kernels.fp8.numbers import CHIPS
from dive_kernels.run import capability

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """What an engine of `precision` computes in; beside FP8 layers float16, where a CPU emulates them float32."""
    return DTYPES["fp32" if device.type == "cpu" else "fp16"] if precision == "fp8" else DTYPES[precision]


class TorchEngine(EngineBase):
    """Takes the bundle's modules over: moves them to `device` and `precision` in place."""

    backend = "torch"

    def __init__(
        self,
        bundle: ModelBundle,
        device: torch.device,
        precision: str = "fp32",
        size: tuple[int, int] | None = None,
        chosen: str = "asked for",
        check_finite: bool = False,
    ) -> None:
        """`size` is (height, width) in pixels, by default the UNet's own. Raises `InputError` if it does not fit."""
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # a run has a few sizes, and calls each thousands of times
        geometry = Geometry.from_configs(bundle.unet.config, bundle.vae.config, "model")
        height, width = size or geometry.own_size(bundle.unet.config)
        misfits = geometry.misfits(height, width)
        if misfits:
            raise InputError(f"torch engine: {'; '.join(misfits)}; choose another size")
        model = bundle.fingerprint  # computed at the first use, so before the weights change type
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
            check_finite=check_finite,
        )
        self.dtype = compute_type(precision, device)
        self._last: dict[str, Callable[[], Tensor]] = {}  # the last call of each network, for check_finite only
        self._text_encoder, self._unet_module, self._vae = (
            _placed(module, device, self.dtype) for module in (bundle.text_encoder, bundle.unet, bundle.vae)
        )

    def condition(self, embeddings: Tensor) -> Conditioning:
        return Conditioning(embeddings.to(self.device, self.dtype))

    def _text(self, token_ids: Tensor) -> Tensor:
        ids = token_ids.to(self.device)
        return self._run("text_encoder", lambda: self._text_encoder(ids, return_dict=True).last_hidden_state)

    def _unet(self, latents: Tensor, timestep: int, states: Tensor, prompt_index: Tensor) -> Tensor:
        sample, hidden = row_inputs(latents.to(self.dtype), states, prompt_index)
        if self.device.type == "cuda":
            sample = sample.contiguous(memory_format=torch.channels_last)
        steps = torch.full((1,), timestep, dtype=torch.int64, device=self.device)
        return self._run("unet", lambda: self._unet_module(sample, steps, hidden, return_dict=False)[0])

    def _decoder(self, latents: Tensor) -> Tensor:
        given = latents.to(self.dtype)
        return self._run("vae_decoder", lambda: self._vae.decode(given, return_dict=False)[0])

    def _encoder(self, pixels: Tensor) -> Tensor:
        given = pixels.to(self.dtype)
        return self._run("vae_encoder", lambda: self._vae.encode(given).latent_dist.mean)

    @torch.inference_mode()
    def _run(self, network: str, call: Callable[[], Tensor], eager: Callable[[], Tensor] | None = None) -> Tensor:
        """Returns float32. `eager` computes the same by modules with hooks, where `call` runs compiled code."""
        if self.check_finite:
            self._last[network] = eager or call
        return call().float()

    def _module(self, network: str) -> nn.Module:
        module: nn.Module = {"text_encoder": self._text_encoder, "unet": self._unet_module}.get(network, self._vae)
        return module

    @torch.inference_mode()
    def _first_bad_layer(self, network: str) -> str | None:
        module = self._module(network)
        found: list[str] = []

        def look(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
            def hook(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
                if not found and isinstance(answer, Tensor) and not bool(answer.isfinite().all()):
                    before = all(bool(x.isfinite().all()) for x in given if isinstance(x, Tensor))
                    where = "output" if before else "input and output"
                    found.append(f"{name} ({type(layer).__name__}) is the first whose {where} is not finite")

            return hook

        leaves = [(name, layer) for name, layer in module.named_modules() if not any(layer.children())]
        hooks = [layer.register_forward_hook(look(name)) for name, layer in leaves]
        try:
            self._last[network]()
        finally:
            for handle in hooks:
                handle.remove()
        return f"{found[0]}; use precision fp32 or bf16, or look at its weights" if found else None


def open_torch(folder: Path, choice: Choice) -> Engine:
    """Opens a model folder eagerly."""
    reasons = ["graphs: eager torch has none, use --backend torch-compiled"] if choice.graphs else []
    return TorchEngine(**opening(folder, choice, reasons))


def opening(folder: Path, choice: Choice, reasons: list[str]) -> dict[str, Any]:
    """The arguments of `TorchEngine`; `DiveError` with `reasons` and every other reason why there are none."""
    device, precision, cuda = choice.device, choice.precision, torch.cuda.is_available()
    where = device if device != "auto" else "cuda" if cuda else "cpu"
    exact = precision if precision != "auto" else "fp16" if where == "cuda" else "fp32"
    if where == "cuda" and not cuda:
        reasons.append(f"device cuda: torch {torch.__version__} sees no CUDA GPU")
    if choice.graphs and where != "cuda":
        reasons.append("graphs: they are CUDA graphs, the device is a CPU")
    if where == "cpu" and exact == "fp16":
        reasons.append("precision fp16: on a CPU torch needs minutes a step with it, use fp32 or bf16")
    if exact == "fp8" and exact in choice.backend.precisions:
        reasons += why_no_fp8(where, cuda)
    choice.refuse(folder, reasons)
    because = "asked for" if device != "auto" else "a CUDA GPU is there" if cuda else "no CUDA GPU"
    from dive_fast.models import load_bundle

    if choice.threads is not None:
        torch.set_num_threads(choice.threads)
    return {
        "bundle": load_bundle(folder),
        "device": torch.device(where),
        "precision": exact,
        "size": choice.size,
        "chosen": f"{choice.why}, device: {because}",
        "check_finite": choice.check_finite,
    }


def why_no_fp8(device: str, cuda: bool) -> list[str]:
    """Returns one reason if that device has no e4m3 units; none where CUDA is asked for and missing, which is another's."""
    chip = capability(torch.device("cuda")) if device == "cuda" and cuda else 0
    if chip >= CHIPS or (device == "cuda" and not cuda):
        return []
    found = f"this GPU has {chip / 10}" if chip else "the device is a CPU"
    return [f"precision fp8: needs a GPU of compute capability {CHIPS / 10} or later, {found}"]


def _placed(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Moves `module` to `device` and `dtype`; channels-last on a GPU, as tensor cores read convolutions.

    By nn.Module's `to`: diffusers' own warns of modules to keep in float32 even if there are none.
    """
    nn.Module.to(module, device, dtype)
    return module.to(memory_format=torch.channels_last) if device.type == "cuda" else module
