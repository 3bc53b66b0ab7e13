"""What the tests of LoRA and adapters compare: the output of a UNet, and two adapters."""

from __future__ import annotations

import torch

from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH


def run(unet, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(unet.parameters()).dtype
    latents = torch.randn(3, *LATENT_SHAPE, generator=generator).to(dtype)
    text = torch.randn(3, MAX_TOKENS, TEXT_WIDTH, generator=generator).to(dtype)
    with torch.no_grad():
        return unet(latents, 500, encoder_hidden_states=text).sample


def assert_same(one, other) -> None:
    plain = ("base_fingerprint", "identities", "cameras", "template", "phrase", "rank", "alpha", "facts")
    assert all(getattr(one, name) == getattr(other, name) for name in plain)
    assert torch.equal(one.embeddings, other.embeddings)
    assert one.lora.keys() == other.lora.keys()
    assert all(torch.equal(one.lora[key], other.lora[key]) for key in one.lora)
