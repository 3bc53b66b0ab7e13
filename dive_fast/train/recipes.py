"""Settings of `dive-fast personalize` by name, and those that an adapter passes on. Loads neither torch nor numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dive_fast.sampling.config import SD15
from dive_fast.train.config import Compute, PersonalizeConfig, Samples
from dive_fast.types import InputError, shown

RATES = ("lora_lr", "token_lr", "mix_lr")


def recipe(name: str) -> PersonalizeConfig:
    """Returns the settings of a recipe; raises `InputError` for an unknown name.

    - "pocket": `PersonalizeConfig()`, for the pocket model on a CPU.
    - "dive" (arXiv 2503.12472, as its public code runs it): Stable Diffusion 1.5 on a GPU; rank 128, 400,000 steps of 16
      photos at a constant 5e-5 in fp16, identities and LoRA at once from photos of both modalities as often as they come,
      every second caption the bare code, timesteps drawn evenly with plain weights, no average.
    - "sd15": ours at the same size: as long and at the same peak rates, but along a cosine, and identities first, from RGB
      alone, then the LoRA, with the captions, timesteps, weights and average that were best on the pocket world, and noise
      on text embeddings.

    "dive" differs from DiVE's code: only the LoRA and the identities' vectors learn, identities do not decay, identities are
    drawn evenly within a modality, captions are our twenty sentences, and gradients are clipped.
    """
    if name not in RECIPES:
        raise InputError(f"unknown recipe {shown(name)}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def with_rates_of(config: PersonalizeConfig, metadata: Mapping[str, Any], where: str) -> PersonalizeConfig:
    """Returns the settings with the learning rates in an adapter's metadata; without any, `config` itself.

    Raises `InputError` for a value that is no rate, which `where` names.
    """
    rates = {name: metadata[name] for name in RATES if name in metadata}
    try:
        return replace(config, **rates)
    except InputError as error:
        raise InputError(f"{where}: {error}; make the adapter again") from error


def _dive() -> PersonalizeConfig:
    return PersonalizeConfig(
        identity_steps=0,
        steps=400_000,
        batch=16,
        rank=128,
        lora_lr=5e-5,
        token_lr=5e-5,
        warmup=0,
        lr_scheduler="constant",
        ir_fraction=None,
        noisy_fraction=0.5,
        identity_noisy_fraction=0.5,
        identities_from_ir=True,
        bare_code=0.5,
        empty_captions=0.0,
        weight_decay=0.01,
        average=0.0,
        weighting="plain",
        save_every=1000,
        compute=Compute(mixed_precision="fp16"),
        samples=Samples(sample_steps=SD15.steps, sample_guidance=SD15.guidance),
    )


def _sd15() -> PersonalizeConfig:
    dive = _dive()
    return PersonalizeConfig(
        identity_steps=dive.steps // 2,
        steps=dive.steps // 2,
        batch=dive.batch,
        rank=dive.rank,
        lora_lr=dive.lora_lr,
        token_lr=dive.token_lr,
        text_noise=0.25,
        save_every=dive.save_every,
        compute=dive.compute,
        samples=dive.samples,
    )


RECIPES: dict[str, Callable[[], PersonalizeConfig]] = {"pocket": PersonalizeConfig, "dive": _dive, "sd15": _sd15}
