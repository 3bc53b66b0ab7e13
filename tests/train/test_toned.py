"""Learning tones: what their gradients reach, what an adapter keeps of them, resuming, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dive_fast.models import load_adapter, load_bundle
from dive_fast.models.phrase import Phrase
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.toned import LearnedTones, TonedRows
from dive_fast.train.trainer import Trainer, phase_configs
from tests.support.models import assert_same_tensors
from tests.support.refusals import refused
from tests.support.training import interrupted

pytestmark = pytest.mark.slow

PHRASE = "{person} , {~red|blue} {wool}"
CONFIG = PersonalizeConfig(
    **{"identity_steps": 2, "steps": 4, "batch": 4, "rank": 2, "warmup": 1, "save_every": 2, "mix_lr": 0.05},
    **{"phrase": PHRASE, "template": "{cam} {token}", "ir_tones": "black|gray|white", "tone_lr": 0.05},
)


@pytest.fixture(scope="module")
def adapter(learn, photos, tmp_path_factory):
    return learn(photos[:8], tmp_path_factory.mktemp("toned") / "adapter", CONFIG)


def test_rows_are_words_and_then_tones_that_start_in_the_middle():
    phrase, table, levels = Phrase(PHRASE), torch.randn(9, 4), torch.randn(3, 4)
    words = torch.nn.Parameter(torch.randn(6, 4))

    class Rows(torch.nn.Module):
        def forward(self):
            return words

    learned = LearnedTones(levels, phrase, table)
    rows = TonedRows(Rows(), learned, phrase)
    found = rows().unflatten(0, (2, 4))
    assert torch.equal(found[:, :3].flatten(0, 1), words)
    bell = torch.exp(torch.tensor([-2.0, 0.0, -2.0]))
    torch.testing.assert_close(found[:, 3], (bell @ levels / bell.sum()).expand(2, 4))
    with torch.no_grad():
        learned.own += torch.randn(4)
    for held in (True, False):
        words.grad = learned.own.grad = None
        if held:
            with rows.held():
                value = rows()
        else:
            value = rows()
        value.square().sum().backward()
        assert (words.grad is None) == held and learned.own.grad.abs().max() > 0
    torch.testing.assert_close(learned().own, learned.own / table.std())


def test_an_adapter_has_the_tones_of_its_words_and_identities_stay_without_infrared(learn, photos, adapter, tmp_path):
    phrase, people = Phrase(PHRASE), adapter.embeddings.unflatten(0, (-1, 4))
    assert adapter.phrase == PHRASE and [one.tones for one in adapter.identities] == [
        [f"<person_000{n}.1.tone>"] for n in (1, 2)
    ]
    torch.testing.assert_close(people[:, 3:], adapter.tones.rows(phrase, people[:, :3]))
    assert all(adapter.tones.tensors()[f"tones.{name}"].abs().min() > 0 for name in ("own", "beside", "bias"))
    plain = learn(photos[:8], tmp_path / "plain", replace(CONFIG, ir_tones=""))
    assert plain.tones is None and not any(one.infrared for one in plain.identities)
    assert torch.equal(people[:, :3].flatten(0, 1), plain.embeddings)  # they learned first, from RGB


def test_infrared_teaches_tones_but_no_word_of_a_person_with_rgb(base, photos):
    config = replace(CONFIG, identity_steps=0, bare_code=0.0, empty_captions=0.0)
    trainer = Trainer(load_bundle(base), [s for s in photos if s.pid == "0001"], config, None, "cpu", False)
    latents = trainer.encode(trainer.photos, False)
    for modality, tones in (("ir", True), ("rgb", False)):
        some = latents.only(np.array([sample.modality == modality for sample in latents.samples]))
        (phase,) = trainer.phases(phase_configs(config, None, "", False), some, None)
        trainer.model.set_trainable(True, True)
        for parameter in (*trainer.model.rows.parameters(), *trainer.model.tones.parameters()):
            parameter.grad = None
        for parameter in trainer.model.lora:
            torch.nn.init.normal_(parameter, std=0.1)
        phase.loss_at(0)[0].backward()
        own, free = trainer.model.tones.own.grad, trainer.model.rows.free.grad
        assert (own is not None and bool(own.any())) == tones and (free is not None and bool(free.any())) != tones


def test_captions_of_infrared_alone_have_tones(base, photos):
    config = replace(CONFIG, bare_code=0.0, empty_captions=0.0)
    trainer = Trainer(load_bundle(base), photos[:4], config, None, "cpu", False)
    for sample in photos[:4]:
        text = trainer.bundle.tokenizer.decode(trainer.captions.ids(sample, np.random.default_rng(0)))
        assert ("<person_0001.1.tone>" in text) == (sample.modality == "ir") and "<person_0001.1>" in text


def test_a_stopped_run_ends_as_one_that_was_not(learn, photos, adapter, tmp_path):
    with interrupted(lambda model, step: step == 3 and bool(model.lora[0].requires_grad)):
        learn(photos[:8], tmp_path / "adapter", CONFIG)
    assert learn(photos[:8], tmp_path / "adapter", CONFIG).fingerprint == adapter.fingerprint


def test_new_people_get_the_tones_of_the_adapter_they_join(learn, photos, adapter, tmp_path):
    new = [s for s in photos if s.pid in ("0003", "0004")]
    for from_ir in (False, True):
        more = learn(new, tmp_path / str(from_ir), replace(CONFIG, identities_from_ir=from_ir), init_from=adapter)
        assert more.identities[:2] == adapter.identities and torch.equal(more.embeddings[:8], adapter.embeddings)
        people = more.embeddings[8:].unflatten(0, (2, 4))
        torch.testing.assert_close(people[:, 3:], adapter.tones.rows(Phrase(PHRASE), people[:, :3]))
        assert_same_tensors(more.tones.tensors(), adapter.tones.tensors())
    assert load_adapter(tmp_path / "True").fingerprint == more.fingerprint


def test_tones_without_a_place_or_without_a_choice_are_refused(learn, photos, tmp_path):
    refused("--ir-tones", learn, photos[:8], tmp_path / "a", replace(CONFIG, phrase=Phrase(PHRASE).plain))
    refused("--ir-tones", learn, photos[:8], tmp_path / "b", replace(CONFIG, ir_tones="gray"))
