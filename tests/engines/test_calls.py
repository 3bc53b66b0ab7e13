"""What engines refuse in a call, and what they say of themselves."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dive_fast.engines import base, load_engine
from dive_fast.engines.base import Conditioning, EngineBase, Geometry
from dive_fast.engines.torch_engine import TorchEngine
from dive_fast.types import DiveError, InputError
from tests.support.engines import edit_spec
from tests.support.graphs import named, reweigh
from tests.support.tiny import HEIGHT, LATENT_SHAPE, TEXT_WIDTH, WIDTH


def test_rows_over_the_limit_are_refused_not_split(engine: EngineBase) -> None:
    rows = engine.spec.profile.rows_max + 1
    bank = engine.condition(torch.zeros(1, 32, TEXT_WIDTH))
    with pytest.raises(InputError, match=f"rows {rows} > rows_max {rows - 1}"):
        engine.eps(torch.zeros(rows, *LATENT_SHAPE), 1, bank, torch.zeros(rows, dtype=torch.int64))
    with pytest.raises(InputError, match=f"VAE decoder: rows {rows} >"):
        engine.decode(torch.zeros(rows, *LATENT_SHAPE))
    with pytest.raises(InputError, match=f"VAE encoder: rows {rows} >"):
        engine.encode(torch.zeros(rows, HEIGHT, WIDTH, 3, dtype=torch.uint8))


def test_wrong_shapes_are_refused_with_both_shapes(engine: EngineBase) -> None:
    bank = engine.condition(torch.zeros(2, 32, TEXT_WIDTH))
    good = torch.zeros(2, *LATENT_SHAPE)
    with pytest.raises(InputError, match=r"latents .*\[rows, 8, 8, 4\].*\[2, 8, 9, 4\]"):
        engine.eps(torch.zeros(2, 8, 9, 4), 1, bank, torch.tensor([0, 1]))
    for odd in ([0], [0, 1, 0]):
        with pytest.raises(InputError, match=r"prompt_index .*\[2\]"):
            engine.eps(good, 1, bank, torch.tensor(odd))
    rows = engine.spec.profile.rows_max + 2
    with pytest.raises(InputError, match=f"UNet: rows {rows} >"):
        engine.eps(good, 1, bank, torch.zeros(rows, dtype=torch.int64))
    for index in ([0, 2], [-1, 0]):
        with pytest.raises(InputError, match="2 prompts"):
            engine.eps(good, 1, bank, torch.tensor(index))
    with pytest.raises(InputError, match=r"uint8 \[B, 64, 32, 3\], got torch.float32"):
        engine.encode(torch.zeros(1, HEIGHT, WIDTH, 3))
    with pytest.raises(InputError, match=r"got torch.uint8 \[1, 32, 64, 3\]"):
        engine.encode(torch.zeros(1, WIDTH, HEIGHT, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match=r"\[P, L\]"):
        engine.encode_text(torch.zeros(32, dtype=torch.int64))


def test_images_that_are_not_finite_are_refused(engine: EngineBase) -> None:
    with pytest.raises(DiveError, match="--check-finite"):
        engine.decode(torch.full((1, *LATENT_SHAPE), torch.nan))


def test_many_images_are_decoded_in_equal_parts(tiny_fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of 64 x 32 fit a call: five are decoded as 2, 2 and 1, and a partial batch of a run as the whole one."""
    engine = load_engine(tiny_fused)
    assert isinstance(engine, TorchEngine)
    latents = torch.randn(5, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    whole, calls = engine.decode(latents), []
    decoder = engine._decoder
    monkeypatch.setattr(engine, "_decoder", lambda part: calls.append(len(part)) or decoder(part))
    monkeypatch.setattr(base, "DECODED_PIXELS", 2 * HEIGHT * WIDTH)
    assert int((engine.decode(latents).int() - whole.int()).abs().max()) <= 1
    assert calls == [2, 2, 1]
    calls.clear()
    with engine.batches_of(4):
        engine.decode(latents[:3])
    assert calls == [2, 2]


def test_a_smaller_batch_of_a_run_is_rounded_as_the_whole_one(tiny_fused: Path) -> None:
    """Libraries choose kernels by size: bit for bit, with guidance and without, photos too."""
    engine = load_engine(tiny_fused, device="cpu")
    generator = torch.Generator().manual_seed(0)
    embeddings, latents = torch.randn(3, 77, TEXT_WIDTH, generator=generator), torch.randn(7, *LATENT_SHAPE)
    photos = torch.randint(0, 256, (7, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator)
    bank = engine.condition(embeddings)
    guided = torch.tensor([0] * 7 + [1, 2, 1, 2, 1, 2, 1])
    with engine.batches_of(7):
        both, plain = engine.eps(latents, 500, bank, guided), engine.eps(latents, 500, bank, guided[7:])
        pictures, codes = engine.decode(latents), engine.encode(photos)
        for images in (1, 2, 3):
            some = slice(7 - images, 7)  # at another place in the batch
            index = torch.cat([guided[:7][some], guided[7:][some]])
            part = engine.eps(latents[some], 500, bank, index)
            assert torch.equal(part, torch.cat([both[:7][some], both[7:][some]]))
            assert torch.equal(engine.eps(latents[some], 500, bank, guided[7:][some]), plain[some])
            assert torch.equal(engine.decode(latents[some]), pictures[some])
            assert torch.equal(engine.encode(photos[some]), codes[some])


def test_check_finite_names_network_timestep_rows_and_layer(tiny_engine: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_engine, tmp_path / "engine"))
    reweigh(folder / "unet/model.onnx", named("mid_block.resnets.1.conv2.weight"), lambda values: values * np.inf)
    edit_spec(folder, rehash=True)
    blind, engine = load_engine(folder, device="cpu"), load_engine(folder, device="cpu", check_finite=True)
    latents, index = torch.zeros(2, *LATENT_SHAPE), torch.tensor([0, 0])
    bank = engine.condition(torch.zeros(1, 32, TEXT_WIDTH))
    assert not blind.eps(latents, 500, blind.condition(torch.zeros(1, 32, TEXT_WIDTH)), index).isfinite().all()
    message = r"^unet at timestep 500: .* 2 of 2 rows \(0, 1\); unet: .*mid_block.resnets.1.conv2.*weights"
    with pytest.raises(DiveError, match=message):
        engine.eps(latents, 500, bank, index)


def test_check_finite_covers_every_network_and_passes_finite_values(tiny_fused: Path) -> None:
    """By torch, whose weights can be reached; which of several rows went bad is told too."""
    engine, plain = load_engine(tiny_fused, device="cpu", check_finite=True), load_engine(tiny_fused, device="cpu")
    assert isinstance(engine, TorchEngine)
    ids, photos = engine.prompts.token_ids([None]), torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    latents = torch.zeros(3, *LATENT_SHAPE)
    bank = engine.condition(engine.encode_text(ids))
    assert torch.equal(engine.decode(latents), plain.decode(latents))
    half_bad = latents.clone()
    half_bad[1] = torch.inf
    with pytest.raises(DiveError, match="unet at timestep 7: its input"):
        engine.eps(half_bad, 7, bank, torch.tensor([0, 0, 0]))
    nan_prompt = Conditioning(torch.cat([bank.states, torch.full_like(bank.states, torch.nan)]))
    with pytest.raises(DiveError, match=r"unet at timestep 7: .* 1 of 3 rows \(2\)"):
        engine.eps(latents, 7, nan_prompt, torch.tensor([0, 0, 1]))
    layers = {
        ("text_encoder", "token_embedding"): lambda: engine.encode_text(ids),
        ("unet", "mid_block.attentions.0.proj_in"): lambda: engine.eps(latents, 7, bank, torch.tensor([0, 0, 0])),
        ("vae_decoder", "decoder.mid_block.resnets.0.conv1"): lambda: engine.decode(latents),
        ("vae_encoder", "encoder.conv_in"): lambda: engine.encode(photos),
    }
    for (network, name), call in layers.items():
        weights = engine._module(network).named_parameters()
        next(weight for n, weight in weights if n.endswith(f"{name}.weight")).data.fill_(torch.nan)
        with pytest.raises(DiveError, match=f"{network}.*: .*{re.escape(name)}"):
            call()


def test_says_what_was_chosen_and_why(tiny_fused: Path, tiny_engine: Path) -> None:
    by_torch = load_engine(tiny_fused, size=(32, 48)).describe()
    assert by_torch.startswith("torch fp32 on cpu, images 32x48") and "diffusers model, device: no CUDA GPU" in by_torch
    by_onnx = load_engine(tiny_engine, "onnxruntime", "cpu", threads=1).describe()
    assert by_onnx.startswith("onnxruntime fp32 on CPUExecutionProvider, images 64x32, up to 16 rows")
    assert "backend: asked for, device: asked for" in by_onnx


def test_torch_takes_another_size(tiny_fused: Path) -> None:
    engine = load_engine(tiny_fused, size=(32, 48))
    assert engine.latent_shape == (8, 4, 6)
    assert engine.decode(torch.zeros(2, 8, 4, 6)).shape == (2, 32, 48, 3)
    with pytest.raises(InputError, match="width 40 .*16"):
        load_engine(tiny_fused, size=(64, 40))


def test_a_base_model_knows_the_empty_prompt_only(tiny_base: Path) -> None:
    engine = load_engine(tiny_base)
    assert engine.encode_text(engine.prompts.token_ids([None])).shape == (1, 32, TEXT_WIDTH)
    with pytest.raises(InputError, match="holds 0"):
        engine.prompts.table.prompt("0001", "cam1")


@pytest.mark.parametrize("vae", [{}, {"block_out_channels": 3}, {"block_out_channels": [8], "shift_factor": 0.1}])
def test_odd_configs_are_refused(vae: dict[str, object]) -> None:
    with pytest.raises(InputError, match="somewhere: the UNet's or VAE's config"):
        Geometry.from_configs({"in_channels": 4, "block_out_channels": [8]}, vae, "somewhere")


def test_a_latent_asked_for_twice_is_computed_for_each_prompt(engine: EngineBase) -> None:
    generator = torch.Generator().manual_seed(0)
    bank = engine.condition(torch.randn(2, 32, TEXT_WIDTH, generator=generator))
    latents, index = torch.randn(2, *LATENT_SHAPE, generator=generator), torch.tensor([0, 0, 1, 0])
    once = engine.eps(latents, 500, bank, index)
    assert once.shape == (4, *LATENT_SHAPE)
    assert torch.equal(once, engine.eps(torch.cat([latents, latents]), 500, bank, index))
    assert not torch.allclose(once[0], once[2], atol=1e-4)
