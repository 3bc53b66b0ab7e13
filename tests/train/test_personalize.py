"""Personalising on a tiny model: what learns, what must not, resuming, and learning onto a trained adapter."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.models import load_bundle
from dive_fast.models.adapter import load_adapter
from dive_fast.models.lora import lora_targets
from dive_fast.models.phrase import Phrase
from dive_fast.train.cameras import camera_code, cameras_of
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.diffusion import DiffusionLoss
from dive_fast.train.embedding import LearnedRows, PartlyLearned, choices_of
from dive_fast.train.loop import PhaseConfig, TrainState
from dive_fast.train.model import Captions, IdentityPrompts, PersonalizedModel
from dive_fast.train.personalize import personalize
from dive_fast.train.photos import BalancedSampler, encode_photos
from dive_fast.types import Sample
from tests.support.refusals import refused
from tests.support.tiny import tiny_bundle_folder

pytestmark = pytest.mark.slow

CONFIG = PersonalizeConfig(identity_steps=0, steps=6, batch=4, rank=2, warmup=1, save_every=2)


@pytest.fixture(scope="module")
def adapter(learn, photos, tmp_path_factory):
    return learn(photos[:8], tmp_path_factory.mktemp("run") / "adapter", CONFIG)


def test_only_rows_and_lora_learn(base, photos, tmp_path):
    bundle = load_bundle(base)
    before = {name: weight.clone() for name, weight in _weights(bundle).items()}
    result = personalize(bundle, photos[:8], tmp_path / "adapter", CONFIG, progress=False)
    fresh = _weights(bundle)
    frozen = {n for n in before if "token_embedding" not in n}
    assert len(frozen) > 100
    assert all(torch.equal(before[n], fresh[n]) for n in frozen)
    table = bundle.text_encoder.get_input_embeddings().frozen
    assert torch.equal(table, before["text_encoder.embeddings.token_embedding.weight"])
    start = table[bundle.tokenizer("person", add_special_tokens=False)["input_ids"]].mean(0)
    assert all((row - start).abs().max() > 1e-4 for row in result.embeddings)
    assert len(result.lora) == 2 * len(lora_targets(load_bundle(base).unet))
    assert any(tensor.abs().max() > 0 for key, tensor in result.lora.items() if "lora_B" in key)


def _weights(bundle):
    weights = {}
    for part in ("text_encoder", "unet", "vae"):
        for name, weight in getattr(bundle, part).named_parameters():
            weights[f"{part}.{name.replace('.base_layer', '').replace('text_model.', '')}"] = weight
    return {name: weight for name, weight in weights.items() if "lora_" not in name}


def _learner(bundle, pids, config=CONFIG):
    return PersonalizedModel(bundle, IdentityPrompts.from_config(pids, config, None), config, None)


def test_identity_rows_are_not_decayed(base, tmp_path):
    """With no learning signal left for a row, AdamW's decay would still shrink it; ours must stay where it is."""
    bundle = load_bundle(base)
    learner = _learner(bundle, ["9"], replace(CONFIG, weight_decay=0.5))
    row = learner.rows.free.detach().clone()
    phase = PhaseConfig("test", tmp_path, 1, 0.01, warmup=1, save_every=1)
    optimizer = TrainState(phase, learner.groups, None).optimizer
    for parameter in (learner.rows.free, *learner.lora):
        parameter.grad = torch.zeros_like(parameter)
    lora = [p.detach().clone() for p in learner.lora]
    optimizer.step()
    assert torch.equal(learner.rows.free, row)
    moved = [p for p, q in zip(learner.lora, lora, strict=True) if q.abs().max() > 0 and not torch.equal(p, q)]
    assert moved, "the LoRA's own decay should act, or this test shows nothing"


@pytest.mark.parametrize("from_ir", [False, True])
def test_infrared_teaches_no_identity_that_rgb_teaches(base, photos, from_ir):
    """Person 1 has both modalities, person 2 infrared alone: gradients of a batch of only infrared, and of all."""
    bundle = load_bundle(base)
    config = replace(CONFIG, identities_from_ir=from_ir, bare_code=0.0, empty_captions=0.0)
    samples = [s for s in photos if s.pid == "0001" or (s.pid == "0002" and s.modality == "ir")]
    latents = encode_photos(bundle, samples, progress=False)
    learner = _learner(bundle, ["0001", "0002"], config)
    captions = Captions(bundle, cameras_of(samples), learner.prompts, config)
    objective = DiffusionLoss.from_config(bundle.scheduler_config, 8.0)

    def gradients(kept):
        def draw(step):
            return np.array([i for i, s in enumerate(samples) if kept(s)]), np.random.default_rng(step)

        learner.rows.free.grad = None
        for parameter in learner.lora:
            parameter.grad = None
        learner.loss(0, latents, captions, draw, objective).backward()
        rows = learner.rows.free.grad
        moved = [False, False] if rows is None else rows.abs().amax(dim=(1, 2)).gt(0).tolist()
        return moved, any(p.grad is not None and p.grad.abs().max() > 0 for p in learner.lora)

    assert gradients(lambda s: s.modality == "ir" and s.pid == "0001") == ([from_ir, False], True)
    assert gradients(lambda s: s.modality == "ir") == ([from_ir, True], True)
    assert gradients(lambda s: s.modality == "rgb") == ([True, False], True)


def test_learning_onto_takes_a_paired_person_too(learn, photos, adapter, tmp_path):
    """With the LoRA fixed a batch of only infrared would have nothing to learn; it must not come up."""
    more = [s for s in photos if s.pid == "0003"]
    result = learn(more, tmp_path / "more", replace(CONFIG, ir_fraction=1.0), init_from=adapter)
    assert "0003" in {i.pid for i in result.identities}


def test_a_batch_embedded_in_two_parts_is_the_batch_embedded_at_once(base, photos):
    bundle = load_bundle(base)
    learner = _learner(bundle, ["0001"])
    words = ("person", "<person_0001>", "camera", "")
    ids = torch.tensor([bundle.tokenizer(w, padding="max_length", truncation=True)["input_ids"] for w in words])
    whole = learner.embed(ids, torch.ones(4, dtype=torch.bool))
    for teaches in ([True, False, False, True], [False] * 4):
        torch.testing.assert_close(learner.embed(ids, torch.tensor(teaches)), whole, rtol=1e-5, atol=1e-6)


def test_identities_learn_first_from_rgb_and_stay_while_the_lora_learns(learn, photos, tmp_path, monkeypatch):
    config = replace(CONFIG, identity_steps=3, identity_noisy_fraction=0.3, noisy_fraction=0.6)
    seen, objectives = [], []
    real = PersonalizedModel.loss

    def watched(self, step, photos, *args):
        objectives.append((args[-1].of_epsilon, args[-1].noisy_fraction))
        lora_b = [p for name, p in self.bundle.unet.named_parameters() if "lora_B" in name]
        learned = any(p.abs().max() > 0 for p in lora_b)
        seen.append((self.rows().detach().clone(), learned, {s.modality for s in photos.samples}))
        return real(self, step, photos, *args)

    monkeypatch.setattr(PersonalizedModel, "loss", watched)
    result = learn(photos[:8], tmp_path / "adapter", config)
    rows, lora, kinds = zip(*seen, strict=True)
    assert len(seen) == 9
    assert objectives == [(True, 0.3)] * 3 + [(False, 0.6)] * 6
    assert lora == (False,) * 4 + (True,) * 5
    assert kinds == ({"rgb"},) * 3 + ({"rgb", "ir"},) * 6
    assert not torch.equal(rows[0], rows[2])
    assert all(torch.equal(result.embeddings, row) for row in rows[3:])


def test_a_finished_lora_is_scaled_by_its_alpha(learn, photos, adapter, tmp_path):
    weaker = learn(photos[:8], tmp_path / "adapter", replace(CONFIG, lora_scale=0.7))
    assert (adapter.alpha, weaker.alpha) == (2.0, pytest.approx(1.4))
    assert all(torch.equal(weaker.lora[key], tensor) for key, tensor in adapter.lora.items())
    assert torch.equal(weaker.embeddings, adapter.embeddings)


def test_an_adapter_records_whose_infrared_it_learned_from(learn, photos, adapter, tmp_path):
    def infrared(samples):
        return sorted({s.pid for s in samples if s.modality == "ir"})

    assert adapter.metadata["infrared_identities"] == infrared(photos[:8]) != []
    new = [s for s in photos if s.pid not in {i.pid for i in adapter.identities}]
    onto = learn(new, tmp_path / "onto", CONFIG, init_from=adapter)
    assert (
        onto.metadata["infrared_identities"] == adapter.metadata["infrared_identities"]
    )  # its infrared trains nothing
    both = learn(new, tmp_path / "both", replace(CONFIG, identities_from_ir=True), init_from=adapter)
    assert both.metadata["infrared_identities"] == sorted({*infrared(photos[:8]), *infrared(new)})


def test_a_finished_run_is_returned_and_another_one_refused(learn, photos, tmp_path):
    out = tmp_path / "adapter"
    first = learn(photos[:8], out, CONFIG)
    again = learn(photos[:8], out, CONFIG)
    assert again.fingerprint == first.fingerprint == load_adapter(out).fingerprint
    refused("--out", learn, photos[:4], out, CONFIG)


def test_new_people_leave_a_trained_adapter_bit_for_bit(learn, photos, adapter, tmp_path):
    new = [s for s in photos if s.pid == "0004"]
    more = learn(new, tmp_path / "more", CONFIG, init_from=adapter)
    known = len(adapter.identities)
    assert [i.pid for i in more.identities] == [*(i.pid for i in adapter.identities), "0004"]
    assert torch.equal(more.embeddings[:known], adapter.embeddings)
    assert all(torch.equal(more.lora[key], adapter.lora[key]) for key in adapter.lora)
    assert more.cameras == adapter.cameras


PHRASE = "{tall|small} person , {red|green|blue} {hat} , bag"


def test_learned_rows_are_free_vectors_and_mixes_in_the_order_of_the_phrase():
    words = torch.randn(6, 4)
    rows = LearnedRows([words[:1], words[1:3], words[3:]], identities=2)
    equal = torch.stack([words[0], words[1:3].mean(dim=0), words[3:].mean(dim=0)])
    torch.testing.assert_close(rows(), equal.repeat(2, 1))
    with torch.no_grad():
        rows.free[1, 0] += 1
        rows.logits[1, 0] = torch.tensor([0.0, 1.0, 50.0])  # the third word does not exist and gets no weight
        rows.logits[0, 1] = torch.tensor([0.0, 0.0, 50.0])
    share = 1 / (1 + torch.e)
    changed = [words[0] + 1, share * words[1] + (1 - share) * words[2], equal[2]]
    expected = torch.stack([words[0], equal[1], words[5], *changed])
    torch.testing.assert_close(rows(), expected)


def test_a_phrase_gives_each_learned_word_its_row(base, photos, tmp_path):
    bundle = load_bundle(base)
    table = bundle.text_encoder.get_input_embeddings().weight.detach().clone()
    config = replace(CONFIG, phrase=PHRASE, template="{cam} {token}")

    def row(word):
        return table[bundle.tokenizer(word, add_special_tokens=False)["input_ids"]].mean(dim=0)

    colours = torch.stack([row(word) for word in ("red", "green", "blue")])
    start = LearnedRows(choices_of(Phrase(PHRASE), bundle.tokenizer, table), identities=1)()
    expected = torch.stack([(row("tall") + row("small")) / 2, colours.mean(dim=0), row("hat")])
    torch.testing.assert_close(start, expected)
    adapter = personalize(bundle, photos[:8], tmp_path / "adapter", config, progress=False)
    assert (adapter.template, adapter.phrase) == ("{cam} {token}", PHRASE)
    name = "person_0002"
    assert adapter.identities[1].placeholder == f"<{name}.0> person , <{name}.1> <{name}.2> , bag"
    people = adapter.embeddings.view(2, 3, -1)
    assert ((people - expected).abs().amax(dim=2) > 1e-5).all(), "every row should have learned"
    for mixed in people[:, 1]:  # still a mix of the three words: weights solve for it exactly and are all positive
        weights = torch.linalg.lstsq(colours.T, mixed[:, None]).solution
        torch.testing.assert_close(colours.T @ weights, mixed[:, None])
        assert weights.min() > 0 and abs(weights.sum() - 1) < 1e-4

    more = IdentityPrompts.from_config(["0004"], CONFIG, adapter)  # not by CONFIG's phrase: like the people it joins
    assert more.identities[0].placeholder == "<person_0004.0> person , <person_0004.1> <person_0004.2> , bag"
    assert more.templates == ("{cam} {token}",)


def test_a_part_left_out_teaches_no_word_of_it(base, photos):
    bundle = load_bundle(base)
    dropped = {"phrase_drop": 1.0, "bare_code": 0.0, "empty_captions": 0.0}
    config = replace(CONFIG, phrase=PHRASE, template="{cam} {token}", **dropped)
    learner = _learner(bundle, ["0001"], config)
    captions = Captions(bundle, cameras_of(photos[:1]), learner.prompts, config)
    rng = np.random.default_rng(0)
    texts = [bundle.tokenizer.decode(captions.ids(photos[0], rng), skip_special_tokens=False) for _ in range(200)]
    whole = sum("<person_0001.1>" in text for text in texts)
    assert all("<person_0001.0>" in text for text in texts)
    assert 50 < whole < 110  # two of five: 80, five standard deviations of 7
    assert all(("bag" in text) == ("<person_0001.1>" in text) for text in texts)


@pytest.mark.parametrize("text", ["a person", "{}", "{red|}", "{red} {", "<a> {red}", "{a} }", "{ }"])
def test_a_phrase_that_cannot_work_is_refused(text):
    refused("phrase", Phrase, text)


def test_a_phrase_too_long_for_the_model_is_refused(learn, photos, tmp_path):
    refused("32 tokens", learn, photos[:8], tmp_path / "a", replace(CONFIG, phrase="{person} " * 40))


def test_learning_onto_refuses_known_people_new_cameras_and_another_base(base, learn, photos, adapter, tmp_path):
    refused("'0001'", learn, photos[:2], tmp_path / "a", CONFIG, init_from=adapter)
    stranger = [replace(s, pid="0009", camera="cam8") for s in photos[:2]]
    refused("cam8", learn, stranger, tmp_path / "b", CONFIG, init_from=adapter)
    other = load_bundle(tiny_bundle_folder(tmp_path / "other", seed=1))
    refused(r"base \w{12}", personalize, other, photos[-2:], tmp_path / "c", CONFIG, init_from=adapter, progress=False)


def test_a_truncated_photo_is_named(learn, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    Image.new("RGB", (20, 40)).save(broken)
    broken.write_bytes(broken.read_bytes()[:200])
    refused(r"broken\.jpg", learn, [Sample(broken, "1", "cam1")], tmp_path / "a", CONFIG)


def test_mirrored_latents_are_those_of_the_mirrored_photo(base, photos, tmp_path):
    bundle = load_bundle(base)
    mirrored = tmp_path / "mirrored.png"
    Image.open(photos[0].path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored)
    both = encode_photos(bundle, [photos[0], Sample(mirrored, "1", "cam1")], progress=False).latents
    # resizing and encoding are symmetric up to rounding of the resampled pixels (one level of 255 at most)
    assert (both[0, 1] - both[1, 0]).abs().max() <= 0.05 * both.abs().max()


def test_balanced_draw_keeps_the_infrared_share_and_evens_out_people(photos):
    draw = BalancedSampler(photos, batch=8, ir_fraction=0.25, seed=0)
    counts = Counter()
    for step in range(200):
        drawn = [photos[i] for i in draw(step)[0]]
        assert [photo.modality for photo in drawn].count("ir") == 2
        counts.update(photo.pid for photo in drawn if photo.modality == "rgb")
    assert max(counts.values()) - min(counts.values()) < 0.2 * 6 * 200 / 4
    assert list(draw(7)[0]) == list(draw(7)[0])


def test_camera_codes_are_fixed():
    assert camera_code("cam3") == "8miP"
    assert camera_code("gate-north") == camera_code("gate-north")
    assert len(camera_code("gate-north")) == 4
    assert len({camera_code(f"c{i}") for i in range(200)}) == 200
    cameras = cameras_of([Sample("a", "1", "cam6", modality="ir"), Sample("b", "1", "cam1")])
    assert [(c.name, c.modality) for c in cameras] == [("cam1", "rgb"), ("cam6", "ir")]
    named = cameras_of([Sample("a", "1", "cam6", modality="ir"), Sample("b", "1", "cam1")], "black and white")
    assert [c.code for c in named] == ["W5Eq", "dx1V black and white"]


def test_partly_learned_embedding_reads_both_tables_and_learns_one():
    frozen, rows = torch.randn(5, 3), torch.randn(2, 3)
    learned = LearnedRows([rows[:1]], identities=2)
    with torch.no_grad():
        learned.free.copy_(rows[:, None])
    words = PartlyLearned(frozen, learned)
    ids = torch.tensor([[0, 5], [6, 4]])
    whole = torch.cat([frozen, rows])
    assert torch.equal(words(ids), whole[ids])
    words(ids).sum().backward()
    assert torch.equal(learned.free.grad, torch.ones(2, 1, 3))
    assert [name for name, _ in words.named_parameters()] == ["rows.free", "rows.logits"]
