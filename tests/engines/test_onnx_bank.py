"""onnxruntime engines with a K/V cache: a cache per run, indices at each step, another size; against the torch engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from dive_export import GraphOptions, export_engine
from dive_fast.engines import Request, load_engine
from dive_fast.types import DiveError, InputError
from tests.support.engines import edit_spec, near
from tests.support.tensorrt_engines import quiet
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS, TEXT_WIDTH

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["all optimizations", "no optimization"])
def folder(request: pytest.FixtureRequest, tiny_fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "all optimizations":
        found: Path = request.getfixturevalue("tiny_bank")
        return found
    out = tmp_path_factory.mktemp("bank") / "engine"
    options = GraphOptions("kv-cache", optimizations=())
    export_engine(tiny_fused, out, rows_max=8, check=False, options=options, progress=quiet)
    return out


def inputs(prompts: int, *latents: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(prompts, MAX_TOKENS, TEXT_WIDTH, generator=generator)
    return embeddings, torch.randn(latents, generator=generator)


def test_each_row_gets_its_latent_and_its_prompt(folder: Path, tiny_fused: Path) -> None:
    engine, oracle = load_engine(folder, device="cpu"), load_engine(tiny_fused, "torch", "cpu")
    embeddings, latents = inputs(70, 3, *LATENT_SHAPE)  # more prompts than one call takes
    cache, plain = engine.condition(embeddings), oracle.condition(embeddings)
    assert cache.states.shape[:3] == (70, 2, MAX_TOKENS)
    for index in (torch.tensor([69, 0, 12]), torch.tensor([5, 5, 5, 69, 0, 12])):
        noise = engine.eps(latents, 321, cache, index)
        torch.testing.assert_close(noise, oracle.eps(latents, 321, plain, index), rtol=0, atol=2e-5)
        assert (noise - oracle.eps(latents, 321, plain, index.flip(0))).abs().max() > 1e-3


def test_half_precision_stays_inside_the_engine(half_bank: Path, tiny_fused: Path) -> None:
    engine, oracle = load_engine(half_bank, device="cpu"), load_engine(tiny_fused, "torch", "cpu")
    embeddings, latents = inputs(2, 1, *LATENT_SHAPE)
    cache, index = engine.condition(embeddings), torch.tensor([0, 1])
    assert cache.states.dtype == torch.float16 and engine.spec.precision == "fp16"
    noise = engine.eps(latents, 4, cache, index)
    assert noise.dtype == torch.float32
    expected = oracle.eps(latents, 4, oracle.condition(embeddings), index)
    torch.testing.assert_close(noise, expected, **near(half_bank, "unet"))
    with pytest.raises(DiveError, match="precision fp32: .* fp16"):
        load_engine(half_bank, device="cpu", precision="fp32")


def test_a_graph_of_other_inputs_than_engine_json_says_is_refused(half_bank: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(half_bank, tmp_path / "engine"))
    edit_spec(folder, lambda spec: spec.update(optimizations=[]))
    with pytest.raises(InputError, match="image_index .* where sample, timestep, kv_bank, prompt_index"):
        load_engine(folder)


def test_free_graphs_take_any_size_that_passes_the_levels(half_bank: Path, tiny_engine: Path, tiny_fused: Path) -> None:
    engine, own = load_engine(half_bank, size=(32, 48)), load_engine(half_bank)
    oracle = load_engine(tiny_fused, "torch", "cpu", size=(32, 48))
    assert engine.latent_shape == (8, 4, 6) and own.latent_shape == LATENT_SHAPE
    assert engine.fingerprint == own.fingerprint
    assert engine.unsupported(Request(4, 32, 48)) == [] and engine.unsupported(Request(4, 64, 32))
    embeddings, latents = inputs(1, 2, 8, 4, 6)
    index = torch.tensor([0, 0])
    noise, expected = (e.eps(latents, 1, e.condition(embeddings), index) for e in (engine, oracle))
    torch.testing.assert_close(noise, expected, **near(half_bank, "unet"))
    images, theirs = engine.decode(latents), oracle.decode(latents)
    assert images.shape == (2, 32, 48, 3)
    assert (images.int() - theirs.int()).abs().max() <= 1 + 127.5 * near(half_bank, "vae_decoder")["atol"]
    torch.testing.assert_close(engine.encode(images), oracle.encode(images), **near(half_bank, "vae_encoder"))
    with pytest.raises(InputError, match="width 40 .* multiple of 16"):
        load_engine(half_bank, size=(64, 40))
    with pytest.raises(DiveError, match="size 32x48: .* 64x32"):
        load_engine(tiny_engine, size=(32, 48))
