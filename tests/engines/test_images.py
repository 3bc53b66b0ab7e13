"""Whole images by both engines against diffusers' own pipeline, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dive_fast.engines import Engine, Request
from dive_fast.engines.base import EngineBase
from dive_fast.sampling import initial_noise
from tests.support.engines import KEYS, SEEDS, floats, latents_of, opened
from tests.support.tiny import HEIGHT, LATENT_SHAPE, WIDTH


@pytest.fixture(scope="module")
def pipeline(tiny_fused: Path) -> Any:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_fused, safety_checker=None, requires_safety_checker=False)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_images(pipe: Any, keys: Sequence[tuple[str, str]], engine: Engine, **options: Any) -> Any:
    prompts = [engine.prompts.table.prompt(*key) for key in keys]
    noise = initial_noise(SEEDS, LATENT_SHAPE)
    return pipe(prompts, latents=noise, height=HEIGHT, width=WIDTH, output_type="np", **options).images


@pytest.mark.parametrize(("steps", "scale"), [(20, 7.5), (1, 7.5), (3, 1.0)])
def test_images_are_those_of_diffusers(engine: EngineBase, pipeline: Any, steps: int, scale: float) -> None:
    theirs = diffusers_images(pipeline, KEYS, engine, num_inference_steps=steps, guidance_scale=scale)
    latents = latents_of(engine, steps=steps, scale=scale)
    assert np.abs(floats(engine, latents).numpy() - theirs).max() <= 1e-3
    images = engine.decode(latents)
    assert images.dtype == torch.uint8 and images.shape == (3, HEIGHT, WIDTH, 3)
    assert np.abs(images.numpy().astype(int) - (theirs * 255).round()).max() <= 1


def test_prompts_and_noise_make_a_difference(engine: EngineBase) -> None:
    """Otherwise every other comparison here would be of constants."""
    images = engine.decode(latents_of(engine, [KEYS[0], KEYS[0], KEYS[1]], [1, 2, 1], steps=5)).float()
    assert images.std() > 10
    assert (images[0] - images[1]).abs().mean() > 1 and (images[0] - images[2]).abs().mean() > 0.1


def test_an_image_alone_is_the_image_in_a_mixed_batch(engine: EngineBase) -> None:
    together = floats(engine, latents_of(engine))
    for row, (key, seed) in enumerate(zip(KEYS, SEEDS, strict=True)):
        alone = floats(engine, latents_of(engine, [key], [seed]))
        assert float((alone[0] - together[row]).abs().max()) <= 1e-3


def test_from_a_photo_is_img2img_of_diffusers(engine: EngineBase, pipeline: Any) -> None:
    """Encode, noise of step 8 of 20, solve: what StableDiffusionImg2ImgPipeline does at strength 0.6."""
    scheduler, generator = pipeline.scheduler, torch.Generator().manual_seed(3)
    photos = torch.randint(0, 256, (3, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator)
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(8)
    with torch.no_grad():
        pixels = photos.permute(0, 3, 1, 2).float() / 127.5 - 1
        clean = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
        latents = scheduler.add_noise(clean, initial_noise(SEEDS, LATENT_SHAPE), scheduler.timesteps[8:9].repeat(3))
        prompts = [engine.prompts.table.prompt(*key) for key in KEYS]
        hidden = torch.cat(pipeline.encode_prompt(prompts, "cpu", 1, True)[::-1])
        for timestep in scheduler.timesteps[8:]:
            without, with_prompt = pipeline.unet(torch.cat([latents] * 2), timestep, hidden).sample.chunk(2)
            eps = without + 7.5 * (with_prompt - without)
            latents = scheduler.step(eps, timestep, latents).prev_sample
    torch.testing.assert_close(engine.encode(photos), clean, rtol=0, atol=1e-5)
    ours = latents_of(engine, start=8, photos=photos)
    assert float((floats(engine, ours) - floats(engine, latents)).abs().max()) <= 1e-3


def test_many_prompts_are_encoded_in_parts(engine: EngineBase) -> None:
    ids = engine.prompts.token_ids([KEYS[i % 3] for i in range(150)])
    embeddings = engine.encode_text(ids)
    assert embeddings.shape[0] == 150 and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings[147], engine.encode_text(ids[:1])[0], rtol=0, atol=1e-5)


def test_engines_name_the_model_and_differ_from_each_other(tiny_fused: Path, tiny_engine: Path) -> None:
    ours, theirs = opened(tiny_fused, "torch"), opened(tiny_engine, "onnxruntime")
    assert ours.spec.model_fingerprint == theirs.spec.model_fingerprint
    assert ours.fingerprint != theirs.fingerprint and len(theirs.fingerprint) == 64
    assert ours.latent_shape == theirs.latent_shape == LATENT_SHAPE


def test_every_reason_against_a_request_is_named(engine: EngineBase) -> None:
    profile = engine.spec.profile
    assert engine.unsupported(Request(profile.rows_max, HEIGHT, WIDTH)) == []
    reasons = engine.unsupported(Request(profile.rows_max + 1, 100, 2 * WIDTH))
    assert reasons == [
        f"rows {profile.rows_max + 1} > rows_max {profile.rows_max}",
        "height 100 is not a multiple of 16 = 8 x 2^1",
        f"height 100 is not this engine's {HEIGHT}",
        f"width {2 * WIDTH} is not this engine's {WIDTH}",
    ]
    assert engine.unsupported(Request(0, HEIGHT, WIDTH)) == ["rows 0 < rows_min 1"]
