"""Stable Diffusion 1.5's configuration with random weights: the size that counts, with nothing to download."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dive_fast.models import ModelBundle, PromptTable
from dive_fast.models.files import load_tokenizer, resolve
from dive_fast.models.prompts import DEFAULT_TEMPLATE
from dive_fast.types import Camera, Identity

SIZE = (512, 256)  # height and width in pixels: latents 64 x 32
TOKENS, VOCABULARY = 77, 49408
NETWORKS = ("text_encoder", "unet", "vae")
IDENTITIES = 16
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def sd15(real: Collection[str] = NETWORKS, seed: int = 0) -> ModelBundle:
    """A fused bundle of `IDENTITIES` identities: random weights for the networks in `real`, meta tensors for the others.

    The tokenizer is the pocket model's, which knows few words; the text encoder has Stable Diffusion's whole vocabulary,
    so its work and its memory are as they should be. Images are noise: for time and rounding, not to be looked at.
    """
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
        hidden_act="quick_gelu",
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    latents = (SIZE[0] // 8, SIZE[1] // 8)
    build = {
        "text_encoder": lambda: CLIPTextModel(text),
        # The class's defaults are Stable Diffusion 1's but for these.
        "unet": lambda: UNet2DConditionModel(sample_size=latents, cross_attention_dim=768, attention_head_dim=8),
        "vae": lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512, **blocks
        ),
    }
    networks: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, make in build.items():
            with torch.device("cpu" if name in real else "meta"):
                networks[name] = make().eval().requires_grad_(False)
    return ModelBundle(tokenizer=_tokenizer(), scheduler_config=dict(SCHEDULER), prompts=_prompts(), **networks)


def _tokenizer() -> Any:
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(resolve("pocket", "pocket-base") / "tokenizer")
    words = [word for identity in _prompts().identities for word in identity.words]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return tokenizer


def _prompts() -> PromptTable:
    identities = tuple(Identity(f"{number:04d}", f"<class_{number}>") for number in range(IDENTITIES))
    cameras = (Camera("cam1", "rgb", "W5Eq"), Camera("cam3", "ir", "8miP"))
    return PromptTable(identities, cameras, DEFAULT_TEMPLATE, "random", "random")
