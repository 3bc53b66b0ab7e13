"""Noise that no batch changes, and guidance in one call."""

from __future__ import annotations

import math

import pytest
import torch

from dive_fast.sampling import guided, initial_noise, repeated
from tests.support.refusals import refused

SHAPE = (4, 9, 5)


def test_a_row_depends_on_its_seed_alone() -> None:
    seeds = [7, 2**64 - 1, 0, 7]
    batch = initial_noise(seeds, SHAPE)
    assert batch.dtype == torch.float32 and batch.shape == (4, *SHAPE)
    for row, seed in zip(batch, seeds, strict=True):
        assert torch.equal(row, initial_noise([seed], SHAPE)[0])
    assert torch.equal(batch[0], batch[3]) and not torch.equal(batch[0], batch[2])


def test_noise_leaves_the_global_generator_alone_and_is_that_of_diffusers() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    state = torch.get_rng_state()
    ours = initial_noise([11, 12], SHAPE)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = randn_tensor((2, *SHAPE), generator=[torch.Generator().manual_seed(s) for s in (11, 12)])
    assert torch.equal(ours, theirs)


def test_no_seeds_give_no_rows_and_seeds_that_no_generator_takes_are_refused() -> None:
    assert initial_noise([], SHAPE).shape == (0, *SHAPE)
    for seed in (-1, 2**64):
        refused(f"first {seed}", initial_noise, [1, seed], SHAPE)


@pytest.mark.parametrize(
    ("null", "scale", "at", "called", "expected"),
    [
        (1, 7.5, None, [1, 1, 3, 5], [1 + 7.5 * 2, 1 + 7.5 * 4]),  # one call of both halves, the empty prompt first
        (None, 1.0, None, [3, 5], [3, 5]),
        (1, 3.0, {42, 50}, [1, 1, 3, 5], [1 + 3 * 2, 1 + 3 * 4]),
        (1, 3.0, {50}, [3, 5], [3, 5]),  # outside its interval the prompts alone
    ],
)
def test_guidance(
    null: int | None, scale: float, at: set[int] | None, called: list[int], expected: list[float]
) -> None:
    calls = []

    def unet(latents: torch.Tensor, timestep: int, index: torch.Tensor) -> torch.Tensor:
        """Answers with the prompt's number."""
        calls.append((len(latents), timestep, index.tolist()))
        return index.float().reshape(-1, 1, 1, 1).expand(-1, *SHAPE)

    out = guided(unet, torch.tensor([3, 5]), null, scale, at)(torch.zeros(2, *SHAPE), 42)
    assert calls == [(2, 42, called)]
    assert out[:, 0, 0, 0].tolist() == expected


def test_repeated_counts_rows_as_guidance_does() -> None:
    latents = torch.arange(3.0).reshape(3, 1, 1, 1)
    assert repeated(latents, 6).flatten().tolist() == [0, 1, 2, 0, 1, 2]
    assert repeated(latents, 3) is latents


def test_other_scales_need_it_and_must_be_finite() -> None:
    refused("empty prompt", guided, torch.zeros, torch.tensor([3]), null_index=None, scale=2.0)
    for scale in (math.nan, math.inf):
        refused("finite", guided, torch.zeros, torch.tensor([3]), null_index=0, scale=scale)
