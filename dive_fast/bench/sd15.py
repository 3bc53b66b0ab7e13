"""Stable Diffusion 1.5's configuration with random weights: the size that counts, with nothing to download."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dive_fast.models import DEFAULT_TEMPLATE, ModelBundle, PromptTable
from dive_fast.models.files import ASSETS, add_words, config_file, load_tokenizer, read_config, resolve
from dive_fast.types import Camera, Identity

SIZE = (512, 256)  # height and width in pixels: latents 64 x 32
TOKENS = 77
NETWORKS = ("text_encoder", "unet", "vae")
IDENTITIES = 16


def sd15(real: Collection[str] = NETWORKS, seed: int = 0) -> ModelBundle:
    """A fused bundle of `IDENTITIES` identities: random weights for the networks in `real`, meta tensors for the others.

    The tokenizer is the pocket model's, which knows few words; the text encoder has Stable Diffusion's whole vocabulary,
    so its work and its memory are as they should be. Images are noise: for time and rounding, not to be looked at.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text, unet, vae, scheduler = (
        read_config(config_file(ASSETS / "sd15", part), part) for part in (*NETWORKS, "scheduler")
    )
    unet["sample_size"] = (SIZE[0] // 8, SIZE[1] // 8)
    build = {
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig.from_dict(text)),
        "unet": lambda: UNet2DConditionModel.from_config(unet),
        "vae": lambda: AutoencoderKL.from_config(vae),
    }
    networks: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, make in build.items():
            with torch.device("cpu" if name in real else "meta"):
                networks[name] = make().eval().requires_grad_(False)
    identities = tuple(Identity(f"{number:04d}", f"<class_{number}>") for number in range(IDENTITIES))
    cameras = (Camera("cam1", "rgb", "W5Eq"), Camera("cam3", "ir", "8miP"))
    prompts = PromptTable(identities, cameras, DEFAULT_TEMPLATE, "random", "random")
    tokenizer = load_tokenizer(resolve("pocket", "pocket-base") / "tokenizer")
    add_words(tokenizer, [word for one in identities for word in one.words])
    return ModelBundle(tokenizer=tokenizer, scheduler_config=scheduler, prompts=prompts, **networks)
