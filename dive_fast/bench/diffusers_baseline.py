"""diffusers' own pipeline as a baseline: as DiVE's code runs it, tuned as far as its documentation goes, and plain."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dive_fast.engines.torch_engine import DTYPES
from dive_fast.models import add_lora, lora_shapes, set_lora_state
from dive_fast.models.lora import lora_pairs
from dive_fast.models.prompts import PromptEncoder
from dive_fast.types import InputError

if TYPE_CHECKING:
    from dive_fast.models import ModelBundle
    from dive_fast.synth.planfile import SynthesisPlan
    from dive_fast.synth.render import Start


COMPILE: dict[str, Any] = {"mode": "max-autotune", "fullgraph": True, "dynamic": False}
RANK = 128  # of DiVE's adapter
LORA_SHARE = 0.05  # of a weight's rms that the split-off LoRA has: an adapter's usual size, and far above rounding


class Pipeline:
    """StableDiffusionPipeline of a bundle, whose modules it takes over, with DPM-Solver++ 2M as our loop has it.

    Called with a batch, gives uint8 [B, H, W, 3]. With `encode_each` the text encoder runs at every call, for every image
    and for its empty prompt, as the pipeline does it; otherwise each prompt is encoded once and kept. Token ids come from
    our tokenizer in both cases: the pipeline's `maybe_convert_prompt` takes half a second a prompt with as many added words.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        plan: SynthesisPlan,
        device: torch.device,
        precision: str,
        *,
        autocast: bool = False,
        encode_each: bool = False,
    ) -> None:
        """Raises `InputError` for guidance that the pipeline takes for none."""
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

        if plan.sampling.guidance < 1.0:
            raise InputError(
                f"diffusers' pipeline has no guidance below 1, got {plan.sampling.guidance}; choose at least 1"
            )
        assert bundle.prompts is not None  # `bench_plan` raises without identities
        self._dtype, self._device, self._plan = DTYPES[precision], device, plan
        self._autocast, self._encode_each = autocast, encode_each
        self._prompts = PromptEncoder(bundle.tokenizer, bundle.prompts)
        self._kept: dict[Any, Tensor] = {}
        for module in (bundle.text_encoder, bundle.unet, bundle.vae):
            nn.Module.to(module, device, self._dtype)
        self.pipe = StableDiffusionPipeline(
            vae=bundle.vae,
            text_encoder=bundle.text_encoder,
            tokenizer=bundle.tokenizer,
            unet=bundle.unet,
            scheduler=DPMSolverMultistepScheduler.from_config(bundle.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipe.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def __call__(self, start: Start) -> NDArray[np.uint8]:
        plan, keys = self._plan, [job.key for job in start.jobs]
        cast = torch.autocast(self._device.type, self._dtype) if self._autocast else nullcontext()
        with cast:
            made = self.pipe(
                prompt_embeds=self._embeddings(keys),
                negative_prompt_embeds=self._embeddings([None] * len(keys)) if plan.sampling.guidance != 1.0 else None,
                latents=start.noise.to(self._device, self._dtype),
                height=plan.height,
                width=plan.width,
                num_inference_steps=plan.sampling.steps,
                guidance_scale=plan.sampling.guidance,
                output_type="pt",
            ).images
        pixels: NDArray[np.uint8] = (made.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return pixels

    def _embeddings(self, keys: list[Any]) -> Tensor:
        if self._encode_each:
            return self._encoded(keys)
        for key in dict.fromkeys(keys):
            if key not in self._kept:
                self._kept[key] = self._encoded([key])
        return torch.cat([self._kept[key] for key in keys])

    def _encoded(self, keys: list[Any]) -> Tensor:
        hidden: Tensor = self.pipe.text_encoder(self._prompts.token_ids(keys).to(self._device)).last_hidden_state
        return hidden


def reference(bundle: ModelBundle, plan: SynthesisPlan, device: torch.device, precision: str) -> Pipeline:
    """As DiVE's code runs it: LoRA of rank 128 beside its linears, on a GPU weights of `precision` under autocast, and
    the text encoder at every call. Computes what `bundle`, which is left as it is, computes, up to rounding.
    """
    own = copy.deepcopy(bundle)
    unfuse(own.unet, RANK)
    return Pipeline(own, plan, device, precision, autocast=device.type == "cuda", encode_each=True)


def plain(bundle: ModelBundle, plan: SynthesisPlan, device: torch.device, precision: str) -> Pipeline:
    """Eager, fused, without autocast; `bundle` is left as it is."""
    return Pipeline(copy.deepcopy(bundle), plan, device, precision)


def tuned(bundle: ModelBundle, plan: SynthesisPlan, device: torch.device, precision: str) -> Pipeline:
    """As diffusers' pages on speed advise: LoRA fused, one dtype without autocast, channels-last, fused QKV projections,
    UNet and VAE decoder by torch.compile with max-autotune, prompt embeddings made once. `bundle` is left as it is.
    """
    made = plain(bundle, plan, device, precision)
    made.pipe.fuse_qkv_projections()
    for module in (made.pipe.unet, made.pipe.vae):
        module.to(memory_format=torch.channels_last)
    made.pipe.unet.compile(**COMPILE)
    made.pipe.vae.decode = torch.compile(made.pipe.vae.decode, **COMPILE)
    return made


@torch.no_grad()
def unfuse(unet: Any, rank: int, seed: int = 0) -> None:
    """Splits a LoRA of random weights off a UNet, in place: what PEFT's layers add, the linears have less of.

    So the UNet computes what it did, to rounding, with the work of an adapter that was never fused; and nothing of it is
    zero, which a GPU could take faster. Raises `DiveError` where LoRA layers are in place already.
    """
    generator = torch.Generator().manual_seed(seed)
    add_lora(unet, rank, float(rank))  # so that what it adds is b a
    state = {key: torch.randn(shape, generator=generator) for key, shape in lora_shapes(unet, rank).items()}
    for name, (a, b) in lora_pairs(state).items():
        weight = unet.get_submodule(name).base_layer.weight
        b.mul_(LORA_SHARE * weight.square().mean().sqrt() / math.sqrt(rank))  # the entries of b a have variance rank
        weight.copy_(weight.double() - b.double() @ a.double())
    set_lora_state(unet, state)
