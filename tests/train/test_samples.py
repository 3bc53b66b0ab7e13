"""Sheets of samples: that they show what the adapter will give, repeatably, and leave training as it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.engines import load_engine
from dive_fast.models import fuse, load_bundle, save_bundle
from dive_fast.sampling import Schedule, dpmpp_2m, guided, initial_noise
from dive_fast.train.config import PersonalizeConfig, Samples
from dive_fast.train.trainer import Trainer
from tests.support.tiny import HEIGHT, WIDTH

pytestmark = pytest.mark.slow

SAMPLES = Samples(sheet_every=2, sheet_people=2, sample_steps=3, sample_guidance=1.5)
CONFIG = PersonalizeConfig(identity_steps=2, steps=4, batch=4, rank=2, warmup=1, average=0.9, lora_lr=0.05)


@pytest.fixture(scope="module")
def run(learn, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "adapter"
    return out, learn(photos, out, replace(CONFIG, samples=SAMPLES))


def _images(sheet, rows, columns):
    """The images of a sheet uint8 [rows, columns, H, W, 3], from its right and lower edges."""
    pixels = np.asarray(Image.open(sheet))
    images = pixels[pixels.shape[0] - rows * (HEIGHT + 2) :, pixels.shape[1] - columns * (WIDTH + 2) :]
    return images.reshape(rows, HEIGHT + 2, columns, WIDTH + 2, 3).transpose(0, 2, 1, 3, 4)[:, :, :HEIGHT, :WIDTH]


def test_sheets_lie_beside_the_log_and_teach_nothing(learn, photos, run, tmp_path):
    out, adapter = run
    work = out.with_name("adapter.training")
    sheets = ["identities-00000002.png", "personalize-00000002.png", "personalize-00000004.png"]
    assert sorted(file.name for file in work.glob("*.png")) == sheets
    assert (work / "personalize-loss.jsonl").exists()
    without = learn(photos, tmp_path / "adapter", CONFIG)
    assert without.fingerprint == adapter.fingerprint


def test_the_last_sheet_shows_what_the_adapter_gives(base, run, tmp_path):
    """The engine's images of the fused adapter: people 1 and 3 through both cameras, each from a noise of their own."""
    out, adapter = run
    fused = fuse(load_bundle(base), adapter)
    save_bundle(fused, tmp_path / "fused")
    engine = load_engine(tmp_path / "fused", backend="torch")
    expected = []
    for seed, pid in enumerate(("0001", "0003")):
        keys = [None, (pid, "cam1"), (pid, "cam3")]
        embeddings, index = engine.prompts.encode(engine.encode_text, keys)
        conditioning = engine.condition(embeddings)
        eps = guided(lambda x, t, i, c=conditioning: engine.eps(x, t, c, i), index[1:], 0, SAMPLES.sample_guidance)
        schedule = Schedule.from_config(engine.scheduler_config, SAMPLES.sample_steps)
        expected.append(engine.decode(dpmpp_2m(eps, initial_noise([seed] * 2, engine.latent_shape), schedule)).numpy())
    shown = _images(out.with_name("adapter.training") / "personalize-00000004.png", 2, 2)
    # the same numbers, but for a LoRA added in each layer instead of to its weights: a level of rounding
    assert np.abs(shown.astype(int) - np.stack(expected).astype(int)).max() <= 1
    earlier = _images(out.with_name("adapter.training") / "personalize-00000002.png", 2, 2)
    assert np.abs(shown.astype(int) - earlier.astype(int)).max() > 1


def test_sampling_in_half_precision_is_near(base, photos):
    latents = {}
    for precision in ("no", "bf16"):
        config = replace(CONFIG, compute=replace(CONFIG.compute, mixed_precision=precision), samples=SAMPLES)
        trainer = Trainer(load_bundle(base), photos, config, None, "cpu", False)
        text = trainer.sampler.text(torch.tensor([trainer.captions.tokenize(words) for words in ("", "a person")]))
        latents[precision] = trainer.sampler.latents(text, torch.tensor([1, 1]), [5, 6])
    error = (latents["bf16"] - latents["no"]).norm() / latents["no"].norm()
    assert 0 < error < 0.05
