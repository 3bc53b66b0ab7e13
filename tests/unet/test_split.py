"""A UNet split in front of its last layers, against diffusers' own UNet with those layers' input exchanged by a hook."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dive_fast.unet.graphs import BankUnetGraph, PromptBankGraph, depths, split_call
from dive_fast.unet.optimizations import SAVINGS, WithoutUnitScale
from tests.support.unets import BUILDS, unet

STEPS = torch.tensor([700]), torch.tensor([650])
PROMPTS, IMAGES = torch.tensor([2, 0, 1, 2, 0]), torch.tensor([0, 1, 1, 0, 1])


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents of two steps, and the embeddings of three prompts."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 8, 8, 4, dtype=torch.float64, generator=generator)
    return first, second, torch.randn(3, 32, 32, dtype=torch.float64, generator=generator)


def by_hooks(network: Any, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """(deep features at the first step, prediction there, prediction at the second step with these) by diffusers alone."""
    first, second, embeddings = inputs()
    layer = network.up_blocks[-1].resnets[-depth]
    seen: list[Tensor] = []
    width = layer.conv1.in_channels - network.config.block_out_channels[0]

    def keep(_: Any, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0][:, :width].clone())

    def exchange(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.cat([seen[0], given[0][:, width:]], 1), *given[1:]

    handle = layer.register_forward_pre_hook(keep)
    whole = network(first[IMAGES], STEPS[0], embeddings[PROMPTS]).sample
    handle.remove()
    handle = layer.register_forward_pre_hook(exchange)
    short = network(second[IMAGES], STEPS[1], embeddings[PROMPTS]).sample
    handle.remove()
    return seen[0], whole, short


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("depth", [1, 2])
@torch.no_grad()
def test_last_layers_on_the_deep_features_of_an_earlier_step(build: str, depth: int) -> None:
    """float64: 1e-13 is 500 roundings of numbers of about 1."""
    network = unet(**BUILDS[build])
    assert list(depths(network)) == [1, 2]
    first, second, embeddings = inputs()
    deep, whole, short = by_hooks(network, depth)
    assert (
        short - network(second[IMAGES], STEPS[1], embeddings[PROMPTS]).sample
    ).abs().max() > 1e-3  # it is another answer
    bank = PromptBankGraph(network)(embeddings)
    form = WithoutUnitScale(BankUnetGraph(network, SAVINGS, 1000))
    found = {
        "plain": (
            split_call(network, first[IMAGES], STEPS[0], embeddings[PROMPTS], None, depth),
            split_call(network, second[IMAGES], STEPS[1], embeddings[PROMPTS], deep, depth),
        ),
        "bank": (
            form(first, STEPS[0], bank, PROMPTS, IMAGES, depth=depth),
            form(second, STEPS[1], bank, PROMPTS, IMAGES, deep=deep, depth=depth),
        ),
    }
    for (out, kept), then in found.values():
        torch.testing.assert_close(kept, deep, rtol=0, atol=1e-13)
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-13)
        torch.testing.assert_close(then, short, rtol=0, atol=1e-13)
