"""Training an encoder on a tiny model: what learns, what is seen, what a caption reads, resuming, and bad photos."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dive_fast.encoder.distribution import KEPT
from dive_fast.encoder.features import FeatureNet, open_features
from dive_fast.encoder.folder import RECORD, hashed, load_encoder, read_record
from dive_fast.encoder.train import dry_run_encoder, train_encoder
from dive_fast.encoder.trainer import EncoderTrainer
from dive_fast.io import sha256_file
from dive_fast.models import load_adapter, load_bundle
from dive_fast.models.fuse import add_identity_tokens
from dive_fast.models.phrase import Phrase
from dive_fast.train.loop import TrainState
from dive_fast.train.trainer import phase_configs
from tests.support.encoders import CONFIG
from tests.support.models import assert_same_tensors, json_edit, tensor_edit
from tests.support.refusals import refused
from tests.support.tiny import tiny_bundle_folder
from tests.support.training import interrupted

pytestmark = pytest.mark.slow


def changed(**training):
    return replace(CONFIG, training=replace(CONFIG.training, **training))


def learn(base, photos, out, source, config=CONFIG, **options):
    return train_encoder(load_bundle(base), photos, out, config, source, progress=False, **options)


def trainer_of(base, photos, source, config=CONFIG, onto=None):
    trainer = EncoderTrainer(load_bundle(base), photos, config, source, onto, None, "cpu", False)
    return trainer, trainer.encode(trainer.photos, False)


def test_a_folder_is_complete_and_reads_as_it_was(trained, encoder, photos, source, tiny_base):
    assert {path.name for path in trained.iterdir()} == {
        *(RECORD, "mapper.safetensors", "people.safetensors", "features", "adapter")
    }
    assert encoder.base_fingerprint == load_bundle(tiny_base).fingerprint
    assert encoder.words == 2 and encoder.row_width == 32
    assert encoder.source.fingerprint == source.fingerprint
    assert encoder.known(["0001", "0006", "2", "0011"]) == ["0001", "0006", "2"]  # "2": the feature net's
    own, moved = load_adapter(trained / "adapter"), encoder.mapper.last.weight
    assert [identity.pid for identity in own.identities] == [f"{n:04d}" for n in range(1, 7)]
    assert own.metadata["infrared_identities"] == [f"{n:04d}" for n in range(1, 7)]
    assert moved.abs().max() > 0 and any(t.abs().max() > 0 for key, t in own.lora.items() if "lora_B" in key)
    for number, identity in enumerate(own.identities):  # rows of an adapter are those of all RGB photos
        seen = [s for s in photos if s.pid == identity.pid and s.modality == "rgb"]
        rows = encoder.rows(source.features(seen))
        torch.testing.assert_close(own.embeddings[2 * number : 2 * number + 2], rows, rtol=1e-4, atol=1e-5)
    known, rows = encoder.distribution.tokens, own.embeddings.reshape(6, -1)
    assert (known - rows).norm() <= (1.01 * (1 - KEPT)) ** 0.5 * (rows - rows.mean(0)).norm()  # 1 %: float16


TONED = {"phrase": "{person} {~person}", "ir_tones": "black|gray|white"}


@pytest.mark.parametrize("phrase", [{}, TONED], ids=["words", "tones"])
def test_a_caption_reads_the_rows_of_its_own_photo(tiny_base, photos, source, phrase):
    """Text embeddings of a batch equal those of a text encoder that has each person's rows as plain vocabulary."""
    whole = {"bare_code": 0.0, "empty_captions": 0.0, "template": "{cam} {token}"}
    config = replace(changed(identity_steps=0, **whole, **phrase), feature_drop=0.0)
    trainer, latents = trainer_of(tiny_base, photos, source, config)
    model = trainer.model
    torch.nn.init.normal_(model.mapper.last.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    if phrase:
        torch.nn.init.normal_(model.tones.own, std=0.3, generator=torch.Generator().manual_seed(1))
    by = {kind: [sample for sample in latents.samples if sample.modality == kind] for kind in ("rgb", "ir")}
    samples = [by["rgb"][0], by["rgb"][5], by["ir"][3], by["rgb"][1]]
    rng = np.random.default_rng(0)
    ids = torch.tensor([trainer.captions.ids(sample, rng) for sample in samples])
    with torch.no_grad():
        spoken = model.spoken(5, samples, ids, slice(1, 4))
        found = model.embed(spoken, torch.tensor([True, False, True]))
        rows = model.rows.current.unflatten(0, (3, 2))
        assert (rows[0] - rows[1]).abs().max() > 1e-3
        if phrase:
            rows = torch.cat([rows, model.tones().rows(model.prompts.phrase, rows)], dim=1)
    for number in range(3):
        plain = load_bundle(tiny_base)
        words = replace(trainer.captions._identity[samples[0].pid], pid="x")
        add_identity_tokens(plain, [words], rows[number])
        with torch.no_grad():
            expected = plain.text_encoder(ids[1 + number : 2 + number]).last_hidden_state[0]
        torch.testing.assert_close(found[number], expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_s_adapter_has_the_tones_that_it_learned(tiny_base, photos, source, tmp_path):
    config = changed(template="{cam} {token}", **TONED)
    learn(tiny_base, photos, tmp_path / "encoder", source, config)
    adapter = load_adapter(tmp_path / "encoder" / "adapter")
    people = adapter.embeddings.unflatten(0, (-1, 3))
    assert len(people) == len(adapter.identities) and adapter.tones.own.abs().max() > 0
    torch.testing.assert_close(
        people[:, 2:], adapter.tones.rows(Phrase(adapter.phrase), people[:, :2]), rtol=1e-3, atol=1e-4
    )


def test_infrared_is_never_read_and_teaches_the_lora_alone(tiny_base, photos, source, monkeypatch):
    read = []
    real = FeatureNet.features
    monkeypatch.setattr(FeatureNet, "features", lambda self, some, *a: read.extend(some) or real(self, some, *a))
    for from_ir in (False, True):
        training = {"bare_code": 0.0, "empty_captions": 0.0, "identities_from_ir": from_ir}
        config = replace(changed(identity_steps=0, **training), vocabulary_weight=0.0)
        trainer, latents = trainer_of(tiny_base, photos, source, config)
        torch.nn.init.normal_(trainer.model.mapper.last.weight, std=0.1)
        infrared = latents.only(np.array([sample.modality == "ir" for sample in latents.samples]))
        (phase,) = trainer.phases(phase_configs(config.training, None, "", False), infrared, None)
        phase.loss_at(0)[0].backward()
        taught = trainer.model.mapper.last.weight.grad
        assert (taught is not None and bool(taught.any())) == from_ir
        assert any(p.grad is not None and p.grad.any() for p in trainer.model.lora)
    assert {s.modality for s in read} == {"rgb"} and len(read) == 2 * 24


def test_parts_of_a_batch_give_the_gradients_of_the_batch(tiny_base, photos, source):
    def gradients(parts):
        config = changed(identity_steps=0, compute=replace(CONFIG.training.compute, accumulate=parts))
        trainer, latents = trainer_of(tiny_base, photos, source, config)
        torch.nn.init.normal_(trainer.model.mapper.last.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        (phase,) = trainer.phases(phase_configs(config.training, None, "", False), latents, None)
        TrainState(phase.config, trainer.model.groups, phase.loss_at, clip=[])._backward(3)
        return torch.cat([p.grad.flatten() for p in trainer.model.mapper.parameters() if p.grad is not None])

    whole, halves = gradients(1), gradients(2)
    assert whole.abs().max() > 0
    torch.testing.assert_close(halves, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_an_interrupted_run_ends_as_an_undisturbed_one(tiny_base, photos, source, trained, tmp_path):
    out = tmp_path / "encoder"
    for when in (
        lambda model, step: model.learning and step == 3,
        lambda model, step: not model.learning and step == 2,
    ):
        with interrupted(when):
            learn(tiny_base, photos, out, source)
        assert not out.exists()
    learn(tiny_base, photos, out, source)
    for name in ("mapper.safetensors", "people.safetensors", "adapter/lora.safetensors", RECORD):
        assert sha256_file(out / name) == sha256_file(trained / name), name
    left = {path.name for path in (tmp_path / "encoder.training").iterdir()}
    assert left == {"lock", "identities-loss.jsonl", "personalize-loss.jsonl"}


def test_a_finished_run_is_returned_and_another_one_refused(tiny_base, photos, source, trained):
    again = learn(tiny_base, photos, trained, source)
    assert again.fingerprint == load_encoder(trained).fingerprint
    refused("--out", learn, tiny_base, photos[:24], trained, source)
    refused("--out", learn, tiny_base, photos, trained, source, replace(CONFIG, pooled=1))


def test_onto_an_adapter_the_mapper_alone_learns(tiny_base, photos, source, adapter, tmp_path):
    encoder = learn(tiny_base, photos, tmp_path / "onto", source, onto=adapter)
    assert not (tmp_path / "onto" / "adapter").exists()
    assert encoder.template == adapter.template and encoder.mapper.last.weight.abs().max() > 0
    logs = {path.name for path in (tmp_path / "onto.training").glob("*.jsonl")}
    assert logs == {"personalize-loss.jsonl"}


def test_without_steps_for_a_lora_there_is_no_adapter(tiny_base, photos, source, tmp_path):
    learn(tiny_base, photos, tmp_path / "alone", source, changed(steps=0))
    assert (tmp_path / "alone" / RECORD).is_file() and not (tmp_path / "alone" / "adapter").exists()
    refused("--steps", learn, tiny_base, photos, tmp_path / "b", source, changed(steps=0, identity_steps=0))


def test_training_on_keeps_phrase_and_people_and_a_rate_of_zero_keeps_the_mapper(tiny_base, photos, trained, tmp_path):
    first = load_encoder(trained)
    before = {name: tensor.clone() for name, tensor in first.mapper.state_dict().items()}
    later = [replace(s, pid=f"5{s.pid}") for s in photos]
    config = replace(changed(identity_steps=0, phrase="{person}"), mapper_lr=0.0)
    more = learn(tiny_base, later, tmp_path / "more", first.source, config, start=first)
    assert more.phrase == first.phrase and more.known(["0001", "50001"]) == ["0001", "50001"]
    assert_same_tensors(more.mapper.state_dict(), before)
    assert (tmp_path / "more" / "adapter").is_dir()
    other = tiny_bundle_folder(tmp_path / "base", seed=1)
    refused(r"base \w{12}", learn, other, later, tmp_path / "c", first.source, start=first)


def test_a_dry_run_writes_nothing_and_says_what_the_run_takes(tiny_base, photos, source, trained, tmp_path):
    forecast = dry_run_encoder(load_bundle(tiny_base), photos, tmp_path / "out", CONFIG, source)
    assert not list(tmp_path.iterdir())
    assert [(phase.name, phase.steps, phase.done) for phase in forecast.stages] == [
        ("identities", 4, 0),
        ("personalize", 4, 0),
    ]
    mapper = load_encoder(trained).mapper
    assert forecast.stages[0].trainable == sum(parameter.numel() for parameter in mapper.parameters())
    written = sum(path.stat().st_size for path in trained.rglob("*") if path.is_file())
    assert written - (trained / "features/model.safetensors").stat().st_size - 10_000 < forecast.disk_bytes
    done = dry_run_encoder(load_bundle(tiny_base), photos, trained, CONFIG, source)
    assert [phase.done for phase in done.stages] == [4, 4]


def test_people_of_one_photo_are_left_out_by_name_and_too_few_refused(tiny_base, photos, source, newcomers, tmp_path):
    with pytest.warns(UserWarning, match="0012, 0013"):
        encoder = learn(tiny_base, [*photos, *newcomers], tmp_path / "a", source)
    assert encoder.known(["0011", "0012", "0013"]) == ["0011"]
    assert len(encoder.distribution.tokens) == 7
    infrared = [s for s in photos if s.modality == "ir"]
    refused("two RGB photos", learn, tiny_base, infrared, tmp_path / "b", source)
    refused("needs two", learn, tiny_base, photos[:6], tmp_path / "b", source)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (json_edit(RECORD, format="x"), "'x'"),
        (json_edit(RECORD, sizes={"features": 10**9, "width": 16, "row": 32}), "1000000000"),
        (json_edit(RECORD, sizes={"features": 10**6, "width": 16, "row": 32}), "mapper.safetensors"),
        (json_edit(RECORD, phrase="{person}"), "mapper.safetensors"),
        (json_edit(RECORD, phrase="<"), "phrase"),
        (json_edit(RECORD, people=[3]), "people"),
        (json_edit(RECORD, facts=None), "facts"),
        (json_edit(RECORD, template="a person"), "template"),
        (json_edit(RECORD, features={"kind": "reid", "fingerprint": "0" * 64}), "another network"),
        (json_edit(RECORD, features={"kind": "clip", "fingerprint": "0", "path": "/nowhere"}), "/nowhere"),
        (json_edit(RECORD, features="clip"), "'clip'"),
        (tensor_edit("people.safetensors", lambda t: {**t, "mean": t["mean"][:3]}), "mean"),
        (tensor_edit("people.safetensors", lambda t: {"mean": t["mean"]}), "components"),
        *(
            (tensor_edit("people.safetensors", lambda t, name=name: {**t, name: t[name].sum()}), "people.safetensors")
            for name in ("mean", "components", "deviations", "coordinates")
        ),
        (tensor_edit("mapper.safetensors", lambda t: {**t, "unit": t["unit"] * torch.nan}), "NaN"),
        (lambda folder: (folder / RECORD).write_text("{"), RECORD),
        (lambda folder: (folder / RECORD).unlink(), "train-encoder"),
    ],
)
def test_a_damaged_folder_is_refused(trained, tmp_path, edit, named):
    copy = tmp_path / "copy"
    for path in trained.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(trained)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(trained)).write_bytes(path.read_bytes())
    edit(copy)
    refused(named, load_encoder, copy)


def test_an_encoder_that_reads_by_clip_finds_it_again(trained, encoder, tmp_path, tiny_base, photos):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=24, patch_size=4)).save_pretrained(tmp_path / "clip")
    made = learn(tiny_base, photos, tmp_path / "out", open_features(tmp_path / "clip"), changed(steps=0))
    assert not (tmp_path / "out" / "features").exists()
    assert load_encoder(tmp_path / "out").fingerprint == made.fingerprint
    (tmp_path / "clip").rename(tmp_path / "moved")
    refused("--features", load_encoder, tmp_path / "out")
    assert load_encoder(tmp_path / "out", tmp_path / "moved").fingerprint == made.fingerprint
    refused("--features", load_encoder, trained, tmp_path / "moved")


def test_an_encoder_that_reads_by_a_tagger_takes_it_along(tagger, tmp_path, tiny_base, photos):
    own = shutil.copytree(tagger, tmp_path / "tagger")
    made = learn(tiny_base, photos, tmp_path / "out", open_features(own), changed(steps=0))
    shutil.rmtree(own)
    assert load_encoder(tmp_path / "out").fingerprint == made.fingerprint


def test_names_are_recorded_as_hashes(trained):
    text = json.dumps(read_record(trained)[1]["people"])
    assert "0001" not in json.loads(text) and hashed("0001") in json.loads(text)
