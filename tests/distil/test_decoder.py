"""A tiny decoder: its training, its folder, and its place in a model."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from dive_fast.distil import decoder as room
from dive_fast.distil.config import DecoderConfig
from dive_fast.distil.decoder import distil_decoder
from dive_fast.models import load_bundle
from dive_fast.models.tiny_decoder import read_record, with_tiny_decoder
from tests.support.city import single_thread
from tests.support.models import assert_same_tensors
from tests.support.refusals import refused
from tests.support.tiny import LATENT_SHAPE
from tests.support.training import interrupted_call

CONFIG = DecoderConfig(width=8, images=4, steps=4, batch=2, warmup=1, save_every=2)


@pytest.fixture(scope="module")
def decoder(student, tmp_path_factory):
    """The folder of a tiny decoder, from the images of a student, which are quickly made. Read only."""
    out = tmp_path_factory.mktemp("decoder") / "tiny"
    with single_thread():
        distil_decoder(load_bundle(student), out, CONFIG, progress=False)
    return out


def test_a_model_with_it_decodes_as_diffusers_does_and_encodes_as_before(decoder, tiny_fused):
    from diffusers import AutoencoderTiny

    bundle = load_bundle(tiny_fused)
    made, record = with_tiny_decoder(bundle, decoder)
    latents = torch.randn(2, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    theirs = AutoencoderTiny.from_pretrained(decoder).decode(latents).sample.detach()
    ours = made.vae.decode(latents / made.vae.config.scaling_factor).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert ours.shape == (2, 3, 64, 32) and record.psnr > 0
    assert_same_tensors(made.vae.encoder.state_dict(), bundle.vae.encoder.state_dict())
    assert made.fingerprint != bundle.fingerprint == load_bundle(tiny_fused).fingerprint


def test_training_learns_the_models_own_pixels(student, tmp_path):
    config = replace(CONFIG, steps=60, lr=5e-3, average=0.0)
    psnr = {
        steps: distil_decoder(load_bundle(student), tmp_path / str(steps), replace(config, steps=steps), False).psnr
        for steps in (1, 60)
    }
    assert psnr[60] > psnr[1] + 3


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_decoder(decoder, student, tmp_path, monkeypatch, one_thread):
    out = tmp_path / "tiny"

    def run():
        return distil_decoder(load_bundle(student), out, CONFIG, progress=False)

    for name, number in (("batch_indices", 3), ("save_tiny", 0)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(room, name, interrupted_call(getattr(room, name), number))
            run()
        assert not out.exists()
    assert run() == read_record(decoder)
    for name in ("diffusion_pytorch_model.safetensors", "decoder.json"):
        assert (out / name).read_bytes() == (decoder / name).read_bytes()
    assert run() == read_record(out)
    refused(str(out), distil_decoder, load_bundle(student), out, replace(CONFIG, lr=0.5), progress=False)


def test_a_decoder_of_another_autoencoder_and_damaged_ones_are_refused(decoder, tiny_base, tiny_fused, tmp_path):
    bundle = load_bundle(tiny_fused)
    refused("decoder.json", with_tiny_decoder, bundle, tmp_path)
    refused("prompts.json", distil_decoder, load_bundle(tiny_base), tmp_path / "out", CONFIG)
    other = load_bundle(tiny_fused)
    other.vae.decoder.conv_out.bias.add_(1.0)
    refused("autoencoder", with_tiny_decoder, other, decoder)
    for change, named in (({"width": 16}, "lacks"), ({"width": "x"}, "width"), ({"psnr": None}, "psnr")):
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(decoder, tmp_path / "bad")
        record = json.loads((decoder / "decoder.json").read_text())
        (tmp_path / "bad" / "decoder.json").write_text(json.dumps({**record, **change}))
        refused(named, with_tiny_decoder, bundle, tmp_path / "bad")


@pytest.mark.slow
def test_it_is_exported_within_the_budget_of_parity(decoder, tiny_fused, tmp_path):
    from dive_export.graphs import graphs
    from dive_export.onnx import export_graph, measure_parity

    parts, _ = graphs(with_tiny_decoder(load_bundle(tiny_fused), decoder)[0], None, 4)
    graph = next(part for part in parts if part.part == "vae_decoder")
    export_graph(graph, tmp_path / "model.onnx", "fp32")
    parity = measure_parity(graph, tmp_path / "model.onnx", "fp32")
    assert parity.worst <= parity.budget
