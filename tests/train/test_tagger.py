"""The tagger: logits of several photos of an identity, its folder, and personalization that starts from its words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.models import load_bundle
from dive_fast.models.phrase import Phrase
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.embedding import LearnedRows
from dive_fast.train.personalize import personalize
from dive_fast.train.tagger import Tagger, TaggerNet, load_tagger, mixed_words, save_tagger, tag_identities
from tests.support.refusals import refused

PHRASE = Phrase("{a|of} {photo} {a|of|person}")
PRIOR = ((0.5, 0.5), (0.2, 0.3, 0.5))


class FakeNet(torch.nn.Module):
    """A net whose output for a photo depends on its first pixel's red value."""

    choices = (2, 3)
    prior = torch.tensor([p for word in PRIOR for p in word]).log()
    answers = (([0.9, 0.1], [0.6, 0.2, 0.2]), ([0.6, 0.4], [0.1, 0.1, 0.8]))

    def forward(self, images):
        chosen = [self.answers[int(image[0, 0, 0])] for image in images]
        return [torch.tensor([answer[k] for answer in chosen]).log() for k in range(2)]


def photo(value):
    return np.full((8, 8, 3), value, np.uint8)


def test_logits_of_one_photo_are_the_nets():
    logits = Tagger(PHRASE, FakeNet(), (8, 8)).logits([photo(1)])
    assert torch.allclose(logits[0].softmax(0), torch.tensor([0.6, 0.4]))
    assert torch.allclose(logits[1].softmax(0), torch.tensor([0.1, 0.1, 0.8]))


def test_more_photos_add_evidence_but_not_without_end():
    """Two photos multiply (by the prior once); of six, each kind thrice, the mean counts three times."""
    tagger = Tagger(PHRASE, FakeNet(), (8, 8))
    two = tagger.logits([photo(0), photo(1)])[1].softmax(0)
    product = torch.tensor([0.6 * 0.1 / 0.2, 0.2 * 0.1 / 0.3, 0.2 * 0.8 / 0.5])
    assert torch.allclose(two, product / product.sum(), atol=1e-6)
    six = tagger.logits([photo(0), photo(1)] * 3)[1].softmax(0)
    prior = torch.tensor(PRIOR[1])
    cubed = (torch.tensor([0.6 * 0.1, 0.2 * 0.1, 0.2 * 0.8]).sqrt() / prior) ** 3 * prior
    assert torch.allclose(six, cubed / cubed.sum(), atol=1e-6)


def test_rows_start_at_the_words_and_no_word_is_out_of_reach():
    choices = [torch.eye(4)[:1], torch.eye(4)[1:3], torch.eye(4)[1:4]]
    rows = LearnedRows(choices, identities=2)
    rows.start_at(torch.tensor([[[0.0, 0.0, 99.0], [5.0, 0.0, -40.0]], [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]))
    first = rows().reshape(2, 3, 4).detach()
    assert torch.allclose(first[0, 1], torch.tensor([0, 0.5, 0.5, 0]))  # the third place is past this word's choices
    assert torch.allclose(first[1, 1, 1:3], torch.tensor([2.0, 0.0]).softmax(0))
    bounded = torch.tensor([0.0, -5.0, -7.0]).softmax(0)
    assert torch.allclose(first[0, 2, 1:], bounded)
    rows().sum(dim=0)[3].backward()
    assert rows.logits.grad[0, 1, 2] != 0


def net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = TaggerNet([len(words) for words in mixed_words(PHRASE)])
    made.prior.copy_(FakeNet.prior)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tagger") / "tagger"
    save_tagger(Tagger(PHRASE, net(), (64, 32)), path)
    return path


def test_a_folder_reads_back_as_it_was_rounded_to_half(folder):
    tagger = load_tagger(folder)
    assert (tagger.phrase, tagger.size) == (PHRASE, (64, 32))
    for name, tensor in net().state_dict().items():
        assert torch.equal(tagger.net.state_dict()[name], tensor.half().float()), name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "else"}, "dive-fast tagger 1"),
        ({"phrase": 3}, "phrase"),
        ({"height": "64"}, "height"),
        ({"phrase": "{a|of} photo"}, "weights"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path, change, named):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tagger.safetensors").write_bytes((folder / "tagger.safetensors").read_bytes())
    write_json(broken / "tagger.json", {**read_json(folder / "tagger.json", "tagger"), **change})
    refused(named, load_tagger, broken)


def test_a_missing_folder_and_missing_weights_are_refused(folder, tmp_path):
    refused(r"tagger\.json", load_tagger, tmp_path / "none")
    write_json(tmp_path / "tagger.json", read_json(folder / "tagger.json", "tagger"))
    refused(r"tagger\.safetensors", load_tagger, tmp_path)


@pytest.fixture
def samples(photos):
    """Person 2 has an RGB and an infrared photo, person 1 two RGB ones."""
    return [photos[4], photos[7], *photos[:2]]


def test_people_are_read_from_rgb_alone_in_the_order_of_their_names(folder, samples):
    tagger = load_tagger(folder)
    read = tag_identities(tagger, samples, PHRASE, progress=False)
    assert read.shape == (2, 2, 3)
    photos = [np.asarray(Image.open(s.path).resize((32, 64), Image.Resampling.LANCZOS)) for s in samples]
    for row, mine in enumerate((photos[2:], photos[:1])):
        for k, logits in enumerate(tagger.logits(mine)):
            assert torch.equal(read[row, k, : len(logits)], logits)
    assert read[0, 0, 2] == 0


def test_a_tagger_of_another_phrase_is_refused(folder, samples):
    refused("another phrase", tag_identities, load_tagger(folder), samples, Phrase("{a|of} photo"), progress=False)


def test_personalising_starts_at_the_words_that_the_tagger_reads(base, folder, samples, tmp_path):
    """With no rate for them, the adapter's rows are the mixes that the tagger's logits make of the vocabulary."""
    bundle = load_bundle(base)
    table = bundle.text_encoder.get_input_embeddings().weight.detach().clone()

    def row(word):
        return table[bundle.tokenizer(word, add_special_tokens=False)["input_ids"]].mean(0)

    config = PersonalizeConfig(
        identity_steps=1, steps=1, batch=2, rank=2, warmup=1, phrase=PHRASE.text, words_from=str(folder), mix_lr=0.0
    )
    adapter = personalize(bundle, samples, tmp_path / "adapter", config, progress=False)
    read = tag_identities(load_tagger(folder), samples, PHRASE, progress=False)
    rows = adapter.embeddings.reshape(2, 3, -1)
    for person in range(2):
        for k, (place, words) in enumerate(((0, ("a", "of")), (2, ("a", "of", "person")))):
            weights = (read[person, k, : len(words)]).softmax(0)
            mixed = sum(weight * row(word) for weight, word in zip(weights, words, strict=True))
            assert torch.allclose(rows[person, place], mixed, atol=1e-6)


@pytest.mark.slow
def test_text_noise_changes_what_the_lora_learns_and_nothing_else(samples, tmp_path, learn):
    config = PersonalizeConfig(identity_steps=2, steps=2, batch=2, rank=2, warmup=1)
    made = [learn(samples, tmp_path / f"{noise}", replace(config, text_noise=noise)) for noise in (0.0, 0.5)]
    assert torch.equal(made[0].embeddings, made[1].embeddings)
    assert any(not torch.equal(made[0].lora[key], made[1].lora[key]) for key in made[0].lora)
