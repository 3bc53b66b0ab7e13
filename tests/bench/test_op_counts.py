"""Roofline FLOPs and bytes: by hand for single layers, against torch's own counter on real tensors, and for SD 1.5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dive_fast.bench import roofline
from dive_fast.bench.op_counts import ModelOpCounts, count
from dive_fast.bench.roofline import Peaks, measure_peaks
from dive_fast.models import load_bundle
from tests.support.tiny import LATENT_SHAPE, MAX_TOKENS


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def test_a_linear_by_hand() -> None:
    layer, given = nn.Linear(3, 5, device="meta"), meta(7, 3)
    work = count(lambda: layer(given).relu())
    assert work.flops == 2 * 7 * 3 * 5
    read_and_written = 4 * (7 * 3 + 3 * 5 + 5 + 7 * 5)
    assert work.moved == read_and_written
    assert work.unfused == read_and_written + 4 * 2 * 7 * 5  # the activation reads and writes its 7 x 5 again


def test_a_convolution_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False, device="meta", dtype=torch.float16)
    given = meta(2, 3, 6, 4, dtype=torch.float16)
    work = count(lambda: layer(given))
    assert work.flops == 2 * (2 * 8 * 3 * 2) * (3 * 3 * 3)
    assert work.moved == work.unfused == 2 * (2 * 3 * 6 * 4 + 8 * 3 * 3 * 3 + 2 * 8 * 3 * 2)


@pytest.mark.parametrize("named", [False, True])
def test_attention_never_writes_its_scores(named: bool) -> None:
    query, key, value = meta(2, 4, 100, 16), meta(2, 4, 30, 16), meta(2, 4, 30, 16)
    attend = nn.functional.scaled_dot_product_attention
    work = count(lambda: attend(query, key=key, value=value) if named else attend(query, key, value))
    assert work.flops == 2 * 2 * (2 * 4 * 100 * 30 * 16)
    assert work.moved == 4 * (2 * 2 * 4 * 100 * 16 + 2 * 2 * 4 * 30 * 16)


@pytest.mark.slow
def test_a_whole_model_counts_as_torch_counts_it(tiny_fused: Path) -> None:
    """Torch's counter on real tensors, where attention runs as math; counted on meta tensors from the configurations."""
    bundle = load_bundle(tiny_fused)
    counted = ModelOpCounts(
        bundle.unet.config, bundle.vae.config, bundle.text_encoder.config, LATENT_SHAPE, MAX_TOKENS, torch.float32
    )
    latents, hidden = torch.randn(6, *LATENT_SHAPE), torch.randn(6, MAX_TOKENS, 32)
    calls = {
        "unet": (lambda: bundle.unet(latents, torch.tensor([5]), hidden), counted.unet(6)),
        "decode": (lambda: bundle.vae.decode(latents), counted.decode(6)),
        "encode": (lambda: bundle.text_encoder(torch.zeros(6, MAX_TOKENS, dtype=torch.int64)), counted.encode(6)),
    }
    for name, (call, work) in calls.items():
        with (
            torch.no_grad(),
            nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH),
            FlopCounterMode(display=False) as real,
        ):
            call()
        assert work.flops == real.get_total_flops() > 1e6, name
        assert 0 < work.moved < work.unfused, name


@pytest.mark.slow
def test_stable_diffusion_at_its_size_costs_nothing() -> None:
    """372.5 GFLOP a UNet row, 1,248.7 an image decoded, 13.3 a prompt at 512 x 256: counted once before, by other code."""
    from dive_fast.bench.sd15 import TOKENS, sd15

    bundle = sd15(real=())
    configs = (bundle.unet.config, bundle.vae.config, bundle.text_encoder.config)
    counted = ModelOpCounts(*configs, shape=(4, 64, 32), tokens=TOKENS, dtype=torch.float16)
    found = [work.flops / 1e9 for work in (counted.unet(1), counted.decode(1), counted.encode(1))]
    assert found == [pytest.approx(372.5, rel=0.005), pytest.approx(1248.7, rel=0.005), pytest.approx(13.3, rel=0.01)]
    assert counted.unet(36).moved == pytest.approx(20.5e9, rel=0.01)  # 48.8 GB op by op, 28.3 of it what fusion removes
    assert counted.unet(4).flops == 4 * counted.unet(1).flops
    assert counted.unet(4).moved < 4 * counted.unet(1).moved  # weights are read once a call
    assert len(bundle.tokenizer("a W5Eq photo of a <class_3> person").input_ids) < TOKENS


def test_floors_by_hand() -> None:
    peaks = Peaks(tflops=2.0, gbytes=100.0, precision="fp16", gemms={})
    assert peaks.bound_ms(flops=4e9, moved=1e6) == pytest.approx(2.0)  # arithmetic: 4 GFLOP at 2 TFLOP/s
    assert peaks.bound_ms(flops=4e9, moved=1e9) == pytest.approx(10.0)  # traffic: 1 GB at 100 GB/s


def test_ceilings_are_plausible() -> None:
    found = measure_peaks(torch.device("cpu"), torch.float32)
    assert found.tflops == max(found.gemms.values()) and len(found.gemms) == 3
    assert 0.002 < found.tflops < 100 and 0.5 < found.gbytes < 2000  # a core without vector units; more than any CPU


def test_a_product_beyond_the_time_limit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "SECONDS", 0.0)
    found = measure_peaks(torch.device("cpu"), torch.float16)
    assert list(found.gemms) == ["x".join([str(roofline.FIRST)] * 3)] and found.precision == "float16"


def test_a_tiny_decoder_counts_as_diffusers_own_and_the_scale_before_it(tiny_fused: Path) -> None:
    from dive_fast.models.tiny_decoder import new_tiny

    bundle = load_bundle(tiny_fused)
    parts = (bundle.unet.config, bundle.vae.config, None, LATENT_SHAPE, MAX_TOKENS, torch.float32)
    channels, height, width = LATENT_SHAPE
    with FlopCounterMode(display=False) as counter:
        new_tiny(bundle.vae, 8).decode(torch.randn(3, *LATENT_SHAPE))
    scale = 2 * 3 * channels**2 * height * width  # a 1x1 convolution
    assert ModelOpCounts(*parts, tiny=8).decode(3).flops == counter.get_total_flops() + scale
    assert ModelOpCounts(*parts).decode(3).flops != counter.get_total_flops() + scale
    factor = 2 ** (len(bundle.vae.config.block_out_channels) - 1)
    pixels = 3 * height * width * factor**2  # of an image, each a 3x3 product
    assert ModelOpCounts(*parts, tiny=0).decode(3).flops == 2 * 3 * pixels * 9 * channels + scale
