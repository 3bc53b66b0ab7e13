"""Engines of the tiny model that several rooms open, and their images before they become bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from torch import Tensor

from dive_export import GraphOptions
from dive_fast.engines import Engine, load_engine
from dive_fast.engines.base import EngineBase
from dive_fast.sampling import Schedule, add_noise, dpmpp_2m, guided, initial_noise

HALF_BANK = GraphOptions("bank", "fp16", any_size=True)
KEYS = [("0001", "cam3"), ("0003", "cam1"), ("0002", "cam3")]
SEEDS = [11, 12, 13]
BACKENDS = ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)]  # the second opens an exported engine


@cache
def opened(folder: Path, backend: str) -> EngineBase:
    engine = load_engine(folder, backend, device="cpu")
    assert isinstance(engine, EngineBase)
    return engine


def latents_of(
    engine: Engine,
    keys: Sequence[tuple[str, str]] = KEYS,
    seeds: Sequence[int] = SEEDS,
    steps: int = 20,
    scale: float = 7.5,
    start: int = 0,
    photos: Tensor | None = None,
) -> Tensor:
    """Keys and seeds to latents, composed as a run does it."""
    embeddings, index = engine.prompts.encode(engine.encode_text, [None, *keys])
    bank = engine.condition(embeddings)
    schedule = Schedule.from_config(engine.scheduler_config, steps)
    latents = initial_noise(seeds, engine.latent_shape)
    if photos is not None:
        latents = add_noise(engine.encode(photos), latents, schedule, start)
    eps = guided(lambda x, t, rows: engine.eps(x, t, bank, rows), index[1:], int(index[0]), scale)
    return dpmpp_2m(eps, latents, schedule, start)


def floats(engine: EngineBase, latents: Tensor) -> Tensor:
    """Images as they are before they become bytes: [B, H, W, 3] in 0..1."""
    images = engine._decoder(latents / engine.geometry.scaling_factor)
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
