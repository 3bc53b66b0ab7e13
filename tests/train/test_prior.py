"""Prior preservation: class photos given or made by the base, what they teach, and that they are made once."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.models import load_bundle
from dive_fast.train import prior as room
from dive_fast.train.config import PersonalizeConfig, Prior, Samples
from dive_fast.train.personalize import personalize
from dive_fast.train.prior import ClassPhotos
from dive_fast.train.samples import ImageSampler
from tests.support.refusals import refused
from tests.support.training import first_gradients, first_phase, interrupted

pytestmark = pytest.mark.slow

PRIOR = Prior(prior_weight=0.5, prior_prompt="a photo of a person", prior_count=3)
CONFIG = PersonalizeConfig(
    identity_steps=0, steps=4, batch=4, rank=2, warmup=1, save_every=2, prior=PRIOR, samples=Samples(sample_steps=2)
)


def _gradients(base, photos, tmp_path, config, weigh):
    """Gradients [rows, LoRA] of the first step's loss, `weigh(photo loss, class loss)`, where all learns."""
    latents = torch.randn(5, 8, 8, 4, generator=torch.Generator().manual_seed(2))
    trainer, phase = first_phase(base, photos, config, tmp_path, latents)
    real = trainer.model.loss, trainer.model.class_loss
    trainer.model.loss = lambda *a: real[0](*a) * weigh[0]
    trainer.model.class_loss = lambda *a: real[1](*a) * weigh[1]
    return first_gradients(trainer, phase)


def test_class_photos_teach_the_lora_by_their_weight_and_no_identity(base, photos, tmp_path):
    rows, lora, numbers = _gradients(base, photos, tmp_path, CONFIG, (1, 1))
    rows_of_photos, lora_of_photos, _ = _gradients(base, photos, tmp_path, CONFIG, (1, 0))
    rows_of_class, lora_of_class, alone = _gradients(base, photos, tmp_path, CONFIG, (0, 1))
    torch.testing.assert_close(rows, rows_of_photos)
    assert rows_of_class.abs().max() == 0
    assert lora_of_class.abs().max() > 0
    torch.testing.assert_close(lora, lora_of_photos + lora_of_class, rtol=1e-4, atol=1e-5)
    heavier = replace(CONFIG, prior=replace(PRIOR, prior_weight=1.0))
    _, twice, _ = _gradients(base, photos, tmp_path, heavier, (0, 1))
    torch.testing.assert_close(twice, 2 * lora_of_class)
    assert numbers["prior"] == alone["prior"] > 0


def test_a_draw_is_a_function_of_the_step(base):
    photos = ClassPhotos(torch.arange(20.0).view(20, 1, 1, 1), torch.zeros(1, 4, dtype=torch.int64))
    first, noise = photos.draw(3, 8, seed=1)
    again, same = photos.draw(3, 8, seed=1)
    assert torch.equal(first, again)
    assert torch.equal(torch.randn(5, generator=noise), torch.randn(5, generator=same))
    assert not torch.equal(first, photos.draw(4, 8, seed=1)[0])
    assert not torch.equal(first, photos.draw(3, 8, seed=2)[0])


def test_the_base_makes_class_photos_once(learn, photos, tmp_path, monkeypatch):
    """A run stopped and resumed equals an uninterrupted one, and makes no class photo again."""
    calls = []
    real = ImageSampler.latents

    def counted(self, text, index, seeds):
        calls.append(list(seeds))
        return real(self, text, index, seeds)

    monkeypatch.setattr(ImageSampler, "latents", counted)
    whole = learn(photos, tmp_path / "whole", CONFIG)
    assert calls == [[0, 1, 2]]
    out, work = tmp_path / "cut", tmp_path / "cut.training"
    with interrupted(lambda model, step: True):
        learn(photos, out, CONFIG)
    (made,) = work.glob("class-*.safetensors")
    kept = made.read_bytes()
    for tensors in ({"x": torch.zeros(1)}, {"latents": torch.zeros(3, 8, 8)}):
        save_file(tensors, made)
        refused(made.name, learn, photos, out, CONFIG)
    made.write_bytes(kept)
    resumed = learn(photos, out, CONFIG)
    assert calls == [[0, 1, 2]] * 2
    assert resumed.fingerprint == whole.fingerprint
    assert not list(work.glob("class-*"))
    other = replace(CONFIG, samples=replace(CONFIG.samples, sample_guidance=3.0))  # they would be others
    refused("other data or settings", learn, photos, out, other)


def test_given_class_photos_take_the_place_of_made_ones(base, learn, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageSampler, "latents", None)
    files = [photos[0].path, photos[2].path]
    bundle = load_bundle(base)
    read = room.read_class_photos(bundle, files, "a person", progress=False)
    assert read.latents.shape == (4, 8, 8, 4)  # each and its mirror image
    given = personalize(bundle, photos, tmp_path / "a", CONFIG, progress=False, class_photos=files)
    none = learn(photos, tmp_path / "b", replace(CONFIG, prior=Prior()))
    assert given.fingerprint != none.fingerprint
    refused("other data or settings", learn, photos, tmp_path / "a", CONFIG, class_photos=files[:1])


def test_a_class_prompt_that_is_too_long_or_useless_is_refused(learn, photos, tmp_path):
    config = replace(CONFIG, prior=replace(PRIOR, prior_prompt="person " * 40))
    refused("32 tokens", learn, photos, tmp_path / "a", config)
    adapter = learn(photos[:4], tmp_path / "b", replace(CONFIG, prior=Prior()))
    refused("--prior-weight", learn, photos[-2:], tmp_path / "c", CONFIG, init_from=adapter)
