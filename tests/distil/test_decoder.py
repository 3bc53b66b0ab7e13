"""A tiny decoder: its training, its folder, and its place in a model."""

import json
import shutil
import sys
from dataclasses import replace
from math import prod

import pytest
import torch
from safetensors.torch import load_file

from dive_fast.distil import decoder as room
from dive_fast.distil.config import DecoderConfig
from dive_fast.distil.decoder import distil_decoder
from dive_fast.distil.distil import distil
from dive_fast.distil.trajectories import HELD_OUT
from dive_fast.models import load_bundle
from dive_fast.models.tiny_decoder import read_record, with_tiny_decoder
from dive_fast.train.config import Compute
from dive_fast.train.memory import tensor_bytes
from dive_fast.train.photos import to_pixels
from dive_fast.types import DiveError
from tests.support.city import single_thread
from tests.support.distilling import CONFIG as STUDENT
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


@pytest.fixture(scope="module")
def convolution(student, tmp_path_factory):
    """The folder of a decoder of one convolution. Read only."""
    out = tmp_path_factory.mktemp("convolution") / "tiny"
    distil_decoder(load_bundle(student), out, replace(CONFIG, width=0), progress=False)
    return out


def test_one_convolution_reads_each_pixel_from_the_latents_around_it(convolution, tiny_fused):
    """By hand: pixel (y, x) of a block is a product of the 3 x 3 latents around the block, scaled, with its own weights."""
    made, record = with_tiny_decoder(load_bundle(tiny_fused), convolution)
    assert record.width == 0 and not (convolution / "config.json").exists()
    weights = {
        name: tensor.double() for name, tensor in load_file(convolution / "diffusion_pytorch_model.safetensors").items()
    }
    channels, height, width = LATENT_SHAPE
    latents = torch.randn(1, *LATENT_SHAPE, generator=torch.Generator().manual_seed(0))
    pixels = made.vae.decode(latents / made.vae.config.scaling_factor).sample[0]
    factor = pixels.shape[1] // height
    for colour, y, x in ((0, 3, 5), (1, 2 * factor, factor + 1), (2, factor * height - 1, factor * width - 1)):
        row, column = y // factor, x // factor
        padded = torch.nn.functional.pad(latents[0].double(), (1, 1, 1, 1))[:, row : row + 3, column : column + 3]
        out = colour * factor**2 + (y % factor) * factor + x % factor
        expected = (weights["decoder.0.weight"][out] * padded).sum() + weights["decoder.0.bias"][out]
        assert pixels[colour, y, x].item() == pytest.approx(expected.item(), abs=1e-5)


def test_one_convolution_learns_pixels_that_are_linear_in_the_latents(student):
    """Their only error is then that of whole grey levels, 59 dB, if it has converged."""
    trainer = room.DecoderTrainer(load_bundle(student), replace(CONFIG, width=0, images=32))
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(32 + HELD_OUT, *LATENT_SHAPE, generator=random).half()
    channels, height, _ = LATENT_SHAPE
    factor = trainer.tiny.decoder[1].upscale_factor
    weights = 0.03 * torch.randn(3 * factor**2, channels, 3, 3, generator=random)
    true = torch.nn.functional.pixel_shuffle(torch.nn.functional.conv2d(latents.float(), weights, padding=1), factor)
    made = {room.LATENTS: latents, room.PIXELS: torch.from_numpy(to_pixels(true))}
    assert trainer.psnr(made) < 25  # grey
    optimizer = torch.optim.Adam(trainer.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        trainer.error(made, range(32))[0].backward()
        optimizer.step()
    assert trainer.psnr(made) > 40


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_decoder(decoder, student, tmp_path, monkeypatch, one_thread):
    out = tmp_path / "tiny"

    def run():
        return distil_decoder(load_bundle(student), out, CONFIG, progress=False)

    for owner, name, number in ((room.DecoderTrainer, "loss", 3), (room, "save_tiny", 0)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, interrupted_call(getattr(owner, name), number))
            run()
        assert not out.exists()
    assert run() == read_record(decoder)
    for name in ("diffusion_pytorch_model.safetensors", "decoder.json"):
        assert (out / name).read_bytes() == (decoder / name).read_bytes()
    assert run() == read_record(out)
    refused(str(out), distil_decoder, load_bundle(student), out, replace(CONFIG, lr=0.5), progress=False)


@pytest.mark.slow
def test_a_dry_run_writes_nothing_and_tells_what_a_run_takes(decoder, student, tmp_path):
    forecast = room.dry_run(load_bundle(student), tmp_path / "tiny", CONFIG)
    assert not list(tmp_path.iterdir())
    (phase,) = forecast.stages
    assert forecast.numbers == {"images": 4 + HELD_OUT, "prompts": 9}
    assert forecast.data_bytes == (4 + HELD_OUT) * (2 * prod(LATENT_SHAPE) + 3 * 64 * 32)
    bundle, tensors = load_bundle(student), load_file(decoder / "diffusion_pytorch_model.safetensors")
    trained = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("decoder"))
    assert (phase.name, phase.steps, phase.done, phase.trainable) == ("decoder", 4, 0, trained)
    assert forecast.weights_bytes >= tensor_bytes([bundle.text_encoder, bundle.unet]) + 4 * trained
    assert (
        forecast.data_bytes + 9 * 4 * trained <= forecast.disk_bytes
    )  # two states with moments and average, the decoder
    assert forecast.data_seconds > 0
    done = room.dry_run(bundle, decoder, CONFIG)
    assert (done.stages[0].done, done.data_seconds) == (4, 0)  # it would only be read
    refused(str(decoder), room.dry_run, bundle, decoder, replace(CONFIG, lr=0.5))


@pytest.mark.parametrize(("call", "config"), [(distil, STUDENT), (distil_decoder, CONFIG), (room.dry_run, CONFIG)])
def test_what_cannot_work_here_is_refused_before_any_work(call, config, tiny_fused, tmp_path, monkeypatch):
    bundle, out = load_bundle(tiny_fused), tmp_path / "out"
    refused("multiple of 3", call, bundle, out, replace(config, compute=Compute(accumulate=3)))
    if not torch.cuda.is_available():
        refused("device cuda", call, bundle, out, config, device="cuda")
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        refused("bf16", call, bundle, out, config)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    refused("tensorboard", call, bundle, out, replace(config, tensorboard=True), error=DiveError)
    assert not list(tmp_path.iterdir())


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


def test_its_record_goes_into_the_engine(decoder, tiny_fused, tmp_path, monkeypatch):
    from dive_export import artifact, export_engine

    def empty(graph, folder, spec, *_):
        (folder / graph.part).mkdir()
        (folder / spec.files[graph.part]).write_bytes(b"")
        return {}

    monkeypatch.setattr(artifact, "_export_part", empty)
    for name, given in (("tiny", decoder), ("own", None)):
        spec = export_engine(tiny_fused, tmp_path / name, check=False, decoder=given)
        assert read_record(tmp_path / name / "vae_decoder") == (given and read_record(given))
        assert ("vae_decoder/decoder.json" in spec.sha256) == (given is not None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["decoder", "convolution"])
def test_it_is_exported_within_the_budget_of_parity(kind, request, tiny_fused, tmp_path):
    from dive_export.graphs import graphs
    from dive_export.onnx import export_graph, measure_parity

    folder = request.getfixturevalue(kind)
    parts, _ = graphs(with_tiny_decoder(load_bundle(tiny_fused), folder)[0], None, 4)
    graph = next(part for part in parts if part.part == "vae_decoder")
    export_graph(graph, tmp_path / "model.onnx", "fp32")
    parity = measure_parity(graph, tmp_path / "model.onnx", "fp32")
    assert parity.worst <= parity.budget
