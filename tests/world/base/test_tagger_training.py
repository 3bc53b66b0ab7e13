"""Training of the pocket's tagger: true words, whose they are, and a toy run that resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dive_fast.models.phrase import Phrase
from dive_fast.train.tagger import load_tagger, mixed_words
from dive_fast.world.base import tagger_train as room
from dive_fast.world.base.config import TaggerConfig
from dive_fast.world.base.data import base_identities, render_base_images
from dive_fast.world.base.tagger_train import train_tagger
from dive_fast.world.captions import caption_phrase, phrase_words
from dive_fast.world.pedestrians import world_pedestrian
from tests.support.refusals import refused
from tests.support.training import interrupted_call

CONFIG = TaggerConfig(images=40, steps=6, batch=4, warmup=1, save_every=2)


def test_true_words_are_choices_of_the_phrase():
    choices = Phrase(caption_phrase()).choices
    for pid in range(1, 300):
        words = phrase_words(world_pedestrian(0, pid))
        assert len(words) == len(choices)
        assert all(word in options for word, options in zip(words, choices, strict=True))


def test_true_words_of_a_known_person():
    people = (world_pedestrian(0, pid) for pid in range(1, 2000))
    person = next(person for person in people if person.pattern == "horizontal" and person.bag == "none")
    words = phrase_words(person)
    top = [person.top_dye, "and", person.second_dye, "striped", person.top_material, person.top, person.top_dye]
    assert words[8:15] == top
    assert words[15:] == [person.bottom_dye, person.bottom_material, person.bottom, *[person.shoe_dye] * 2, "shoes"]


def test_people_are_those_in_the_rendered_images():
    captions = render_base_images(4, 40, monochrome_fraction=0.0, noise_fraction=1.0, workers=1).captions
    dyes = [person.shoe_dye for person in base_identities(4, 40)]
    shoes = [f", {dye} shoes" in text for dye, text in zip(dyes, captions, strict=True) if " shoes" in text]
    assert len(shoes) > 20
    assert all(shoes)


@pytest.mark.slow
def test_a_run_that_was_cut_ends_as_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_TEST_IMAGES", 10)
    report = train_tagger(CONFIG, tmp_path / "whole", tmp_path / "work")
    assert 0 <= report["right"] <= 1
    refused(r"tagger\.state", train_tagger, replace(CONFIG, batch=8), tmp_path / "b", tmp_path / "work")
    (tmp_path / "work" / "tagger.state").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(room, "tagger_loss", interrupted_call(room.tagger_loss, 3))
        with pytest.raises(KeyboardInterrupt):
            train_tagger(CONFIG, tmp_path / "cut", tmp_path / "work")
    train_tagger(CONFIG, tmp_path / "cut", tmp_path / "work")
    whole, resumed = load_tagger(tmp_path / "whole"), load_tagger(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True))
    counts = np.array([len(words) for words in mixed_words(whole.phrase)])
    shares = [part.exp().sum().item() for part in whole.net.prior.split(counts.tolist())]
    assert np.allclose(shares, 1, atol=2e-3)  # rounded to half
    refused("--overwrite", train_tagger, replace(CONFIG, steps=8), tmp_path / "cut", tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
