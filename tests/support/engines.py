"""Engines of the tiny model that several rooms open, and their images before they become bytes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dive_export import GraphOptions
from dive_fast.engines import Engine, load_engine
from dive_fast.engines.base import EngineBase
from dive_fast.io import sha256_file
from dive_fast.sampling import Schedule, add_noise, dpmpp_2m, guided, initial_noise
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH

HALF_BANK = GraphOptions("kv-cache", "fp16", any_size=True)
KEYS = [("0001", "cam3"), ("0003", "cam1"), ("0002", "cam3")]
SEEDS = [11, 12, 13]
no_openvino = pytest.mark.skipif(not find_spec("openvino"), reason="openvino is not installed (extra: openvino)")
BACKENDS = [  # the others open an exported engine
    "torch",
    pytest.param("onnxruntime", marks=pytest.mark.slow),
    pytest.param("openvino", marks=[pytest.mark.slow, no_openvino]),
]


@cache
def opened(folder: Path, backend: str) -> EngineBase:
    engine = load_engine(folder, backend, device="cpu")
    assert isinstance(engine, EngineBase)
    return engine


def edit_spec(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda spec: None, *, rehash: bool = False
) -> None:
    """Changes an engine folder's `engine.json`; with `rehash`, its hashes become those of the files."""
    path = folder / "engine.json"
    spec = json.loads(path.read_text())
    if rehash:
        spec["sha256"] = {name: sha256_file(folder / name) for name in spec["sha256"]}
    change(spec)
    path.write_text(json.dumps(spec))


def given(prompts: int, images: int, rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random embeddings, latents and an index of prompts."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(prompts, MAX_TOKENS, TEXT_WIDTH, generator=generator)
    latents = torch.randn(images, *LATENT_SHAPE, generator=generator)
    return embeddings, latents, torch.randint(prompts, (rows,), generator=generator)


def near(folder: Path, part: str) -> dict[str, float]:
    """How near two runs of an exported part are, which round otherwise.

    parity.json has the largest difference of such a run from torch: twice that for two runs, twice again for other inputs.
    """
    parity = json.loads((folder / "parity.json").read_text())
    return {"rtol": 0.0, "atol": 4 * max(parity[part]["largest"].values())}


def assert_predicts_as(
    oracle: Engine, engine: Engine, timestep: int, inputs: Sequence[Tensor], **within: float
) -> Tensor:
    """Compares `eps` of two engines on the inputs of `given`; returns the engine's."""
    embeddings, latents, index = inputs
    found, expected = (e.eps(latents, timestep, e.condition(embeddings), index) for e in (engine, oracle))
    torch.testing.assert_close(found, expected, **within)
    return found


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


def outlives_other_calls(engine: Any, latents: torch.Tensor, bank: Any, index: torch.Tensor) -> None:
    """Asserts that what a UNet call gave stays as it was while four threads and this one call again."""
    first = engine.eps(latents, 500, bank, index)
    copy = first.clone()
    later: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: later.append(engine.eps(latents, 500, bank, index))) for _ in range(4)]
    for thread in threads:
        thread.start()
    engine.eps(-latents, 3, bank, index)
    for thread in threads:
        thread.join()
    assert torch.equal(first, copy) and len(later) == 4 and all(torch.equal(other, first) for other in later)
