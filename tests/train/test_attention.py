"""Attention of training on a CPU: the same numbers, only where it pays."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from dive_fast.models import load_bundle
from dive_fast.train.attention import use_cpu_attention


def _processors(unet) -> set[type]:
    return {type(processor) for processor in unet.attn_processors.values()}


def test_cpu_attention_changes_outputs_and_gradients_by_rounding_alone(base):
    unet = load_bundle(base).unet.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    channels, (height, width) = unet.config.in_channels, unet.config.sample_size
    x = torch.randn(2, channels, height, width, generator=generator)
    text = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        unet.zero_grad()
        output = unet(x, 10, text).sample
        output.square().sum().backward()
        return output.detach(), torch.cat([p.grad.flatten() for p in unet.parameters()])

    before = run()
    use_cpu_attention(unet, "cpu")
    assert _processors(unet) == {AttnProcessor}
    for old, new in zip(before, run(), strict=True):
        assert (old - new).abs().max() < 1e-4 * old.abs().max()  # float32 sums in another order


@pytest.mark.parametrize(("device", "size"), [("cuda", (16, 8)), ("cpu", (64, 32)), ("cpu", 64)])
def test_attention_of_gpus_and_large_maps_stays(base, device, size):
    unet = load_bundle(base).unet
    unet.register_to_config(sample_size=size)
    use_cpu_attention(unet, device)
    assert _processors(unet) == {AttnProcessor2_0}
