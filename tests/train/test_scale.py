"""What lets personalising go on at scale: precision, parts, checkpointing, prepared sets; and settings that are refused."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from dive_fast.cli import main
from dive_fast.models import load_adapter, load_bundle
from dive_fast.train import course
from dive_fast.train import personalize as room
from dive_fast.train.course import Course, stages_of
from dive_fast.train.learner import Learner
from dive_fast.train.loop import Trainer, load_state
from dive_fast.train.personalize import PersonalizeConfig, personalize
from dive_fast.train.photos import encode_photos
from dive_fast.train.precision import Compute
from dive_fast.types import DiveError, InputError

CONFIG = PersonalizeConfig(identity_steps=3, steps=5, batch=4, rank=2, warmup=1, save_every=2)


@pytest.fixture(scope="module")
def plain(base, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "adapter"
    return personalize(load_bundle(base), photos, out, CONFIG, progress=False)


def test_checkpointing_changes_no_bit(base, photos, plain, tmp_path):
    config = replace(CONFIG, compute=Compute(checkpointing=True))
    adapter = personalize(load_bundle(base), photos, tmp_path / "a", config, progress=False)
    assert adapter.fingerprint == plain.fingerprint


def test_parts_change_rounding_alone(base, photos, plain, tmp_path):
    config = replace(CONFIG, compute=Compute(accumulate=2))
    adapter = personalize(load_bundle(base), photos, tmp_path / "a", config, progress=False)
    torch.testing.assert_close(adapter.embeddings, plain.embeddings, rtol=1e-4, atol=1e-6)
    learned = max(tensor.abs().max() for key, tensor in plain.lora.items() if "lora_B" in key)
    for key, tensor in adapter.lora.items():
        assert (tensor - plain.lora[key]).abs().max() < 0.01 * learned


def test_a_run_stopped_for_lack_of_memory_goes_on_in_parts(base, photos, plain, tmp_path, monkeypatch):
    """How numbers are computed is no other run; in another precision it is."""
    real = Learner.loss

    def stop(self, step, *args):
        if step == 3 and self.lora[0].requires_grad:
            raise KeyboardInterrupt
        return real(self, step, *args)

    monkeypatch.setattr(Learner, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        personalize(load_bundle(base), photos, tmp_path / "a", CONFIG, progress=False)
    monkeypatch.setattr(Learner, "loss", real)
    with pytest.raises(InputError, match="other data or settings"):
        half = replace(CONFIG, compute=Compute("bf16"))
        personalize(load_bundle(base), photos, tmp_path / "a", half, progress=False)
    config = replace(CONFIG, compute=Compute(accumulate=4, checkpointing=True))
    adapter = personalize(load_bundle(base), photos, tmp_path / "a", config, progress=False)
    assert torch.equal(adapter.embeddings, plain.embeddings)  # learned before the stop


def _gradients(base, photos, tmp_path, precision):
    config = replace(CONFIG, identity_steps=0, compute=Compute(precision))
    course = Course(load_bundle(base), photos, config, None, "cpu", False)
    generator = torch.Generator().manual_seed(1)
    for parameter in course.learner.lora:  # B starts at zero, and A would have no gradient
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    (lesson,) = course.lessons(stages_of(config, tmp_path, "", False), course.encoded(photos, False), None)
    Trainer(lesson.stage, course.learner.groups, lesson.loss_at, clip=[]).step(0)
    gradients = [course.learner.rows.free.grad.flatten()]
    return [*gradients, torch.cat([p.grad.flatten() for p in course.learner.lora])]


def test_bf16_teaches_about_the_same(base, photos, tmp_path):
    """bf16 has 8 bits, so a gradient errs by some 2**-8 of its size; rows and LoRA themselves stay float32."""
    pairs = zip(*(_gradients(base, photos, tmp_path, precision) for precision in ("no", "bf16")), strict=True)
    for exact, half in pairs:
        assert half.dtype == torch.float32
        assert 0 < (half - exact).norm() / exact.norm() < 0.05


def test_a_run_in_bf16_leaves_a_float32_adapter(base, photos, plain, tmp_path):
    config = replace(CONFIG, compute=Compute("bf16"))
    adapter = personalize(load_bundle(base), photos, tmp_path / "a", config, progress=False)
    assert adapter.metadata["compute"]["mixed_precision"] == "bf16"
    for tensor in (adapter.embeddings, *adapter.lora.values()):
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())
    torch.testing.assert_close(adapter.embeddings, plain.embeddings, rtol=0, atol=0.02)


def test_a_mix_of_words_is_not_rounded_to_half(base, photos):
    config = replace(CONFIG, phrase="{red|green|blue} person")
    learner = Course(load_bundle(base), photos, config, None, "cpu", False).learner
    with torch.autocast("cpu", torch.bfloat16):
        mixed = learner.rows()
    assert torch.equal(mixed, learner.rows())


def test_without_an_average_the_adapter_is_what_was_learned_last(base, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_clear", lambda work: None)
    config = replace(CONFIG, average=0.0)
    adapter = personalize(load_bundle(base), photos, tmp_path / "a", config, progress=False)
    state = load_state(tmp_path / "a.training" / "personalize.state")
    last = {tuple(tensor.shape): tensor for tensor in state["parameters"]}
    assert all(any(torch.equal(tensor, value) for value in state["parameters"]) for tensor in adapter.lora.values())
    assert len(last) > 1


@pytest.mark.parametrize("weighting", ["min-snr", "plain"])
def test_the_weighting_chosen_is_that_of_both_stages(base, photos, tmp_path, monkeypatch, weighting):
    seen = set()
    real = Learner.loss

    def watched(self, step, *args):
        seen.add((args[-1].weighting, args[-1].snr_gamma, args[-1].noisy_share))
        return real(self, step, *args)

    monkeypatch.setattr(Learner, "loss", watched)
    config = replace(CONFIG, weighting=weighting, snr_gamma=3.0)
    personalize(load_bundle(base), photos, tmp_path / "a", config, progress=False)
    assert seen == {(weighting, 3.0, 0.4), (weighting, 3.0, 0.75)}


def test_latents_of_a_prepared_set_teach_what_its_photos_teach(base, photos, plain, tmp_path, monkeypatch):
    latents = encode_photos(load_bundle(base), photos[:-2], progress=False)
    first = personalize(load_bundle(base), photos[:-2], tmp_path / "files", CONFIG, progress=False)
    more = encode_photos(load_bundle(base), photos[-2:], progress=False)
    new = personalize(load_bundle(base), photos[-2:], tmp_path / "new", CONFIG, onto=first, progress=False)
    monkeypatch.setattr(course, "encode_photos", None)
    again = personalize(load_bundle(base), latents, tmp_path / "latents", CONFIG, progress=False)
    assert again.fingerprint == first.fingerprint
    onto = personalize(load_bundle(base), more, tmp_path / "more", CONFIG, onto=first, progress=False)
    assert onto.fingerprint == new.fingerprint
    with pytest.raises(InputError, match="a prepared set's latents are none"):
        config = replace(CONFIG, words_from="pocket")
        personalize(load_bundle(base), latents, tmp_path / "words", config, progress=False)


def test_states_that_a_kill_left_beside_a_finished_adapter_are_removed(base, photos, tmp_path):
    out, work = tmp_path / "a", tmp_path / "a.training"
    personalize(load_bundle(base), photos, out, CONFIG, progress=False)
    for name in ("identities.state", "personalize.state", "class-0123.safetensors"):
        (work / name).touch()
    personalize(load_bundle(base), photos, out, CONFIG, progress=False)
    assert sorted(file.name for file in work.iterdir()) == ["identities-loss.jsonl", "lock", "personalize-loss.jsonl"]


def test_what_cannot_work_is_said_and_leaves_nothing_behind(base, photos, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name))
    cases = [
        ([], CONFIG, InputError, "there are no training photos"),
        (photos, replace(CONFIG, compute=Compute(accumulate=3)), InputError, "a batch of 4 cannot be shared evenly"),
        (photos, replace(CONFIG, compute=Compute("fp16")), InputError, "fp16 needs a GPU"),
        (photos, replace(CONFIG, tensorboard=True), DiveError, r"dive-fast\[tensorboard\]"),
    ]
    for given, config, error, words in cases:
        with pytest.raises(error, match=words):
            personalize(load_bundle(base), given, tmp_path / "a", config, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("identity_steps", [0, 3])
def test_people_whom_no_batch_teaches_are_named(base, photos, tmp_path, identity_steps):
    """Person 1 in infrared alone, in batches of RGB; and, learned with the LoRA, everybody in batches of infrared."""
    config = replace(CONFIG, identity_steps=identity_steps)
    hidden = [s for s in photos if s.pid != "0001" or s.modality == "ir"]
    for settings in ({"ir_share": 0.0}, {"batch": 1, "ir_share": 0.4}):
        with pytest.raises(InputError, match="1 people would learn nothing, first '0001'"):
            personalize(load_bundle(base), hidden, tmp_path / "a", replace(config, **settings), progress=False)
    infrared = replace(config, ir_share=1.0)
    if identity_steps:  # they learn first, from what there is: RGB alone
        personalize(load_bundle(base), photos, tmp_path / "b", infrared, progress=False)
    else:
        with pytest.raises(InputError, match="4 people would learn nothing"):
            personalize(load_bundle(base), photos, tmp_path / "b", infrared, progress=False)
        with pytest.raises(InputError, match="1 people would learn nothing, first '0004'"):
            told = replace(infrared, identities_from_ir=True)
            personalize(load_bundle(base), photos, tmp_path / "b", told, progress=False)
    assert not (tmp_path / "a.training").exists()


def _command(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    output = capsys.readouterr()
    return stop.value.code or 0, output.out, output.err


def test_the_command_learns_from_a_prepared_set_without_its_raw_tree(base, photos, tmp_path, capsys):
    raw = tmp_path / "raw"
    for sample in (s for s in photos if s.modality == "rgb"):
        target = raw / sample.pid / sample.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(sample.path.read_bytes())
    prepared = tmp_path / "prepared"
    sets = ["--external", f"folder:{raw}"]
    code, _, error = _command(capsys, "prepare", "--out", prepared, "--model", base, *sets)
    assert code == 0, error
    short = [
        "--identity-steps",
        2,
        "--steps",
        2,
        "--batch",
        2,
        "--rank",
        2,
        "--model",
        base,
        "--exclude",
        "0002",
        "--json",
    ]
    code, out, error = _command(
        capsys, "personalize", "--external", raw, "--external-layout", "folder", "--out", tmp_path / "a", *short
    )
    assert code == 0, error
    raw.rename(tmp_path / "gone")
    code, out, error = _command(capsys, "personalize", "--prepared", prepared, "--out", tmp_path / "b", *short)
    assert code == 0, error
    assert json.loads(out.splitlines()[-1])["photos"] == 6
    from_files, from_latents = load_adapter(tmp_path / "a"), load_adapter(tmp_path / "b")
    assert [i.pid for i in from_latents.identities] == ["0001", "0003", "0004"]
    # encoded in batches of another size
    torch.testing.assert_close(from_latents.embeddings, from_files.embeddings, rtol=1e-3, atol=1e-4)


def test_the_command_refuses_options_that_do_not_go_together(base, photos, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    raw = ["--external", photos[0].path.parent]
    cases = [
        (["--prepared", "p", *raw], "--prepared takes the place of --paired and --external"),
        ([*raw, "--prior-photos", tmp_path], "counts for nothing without --prior-weight"),
        ([*raw, "--prior-weight", 1, "--prior-photos", tmp_path / "none"], "has no image"),
        (["--prepared", tmp_path / "none", "--model", base], "none"),
    ]
    for words, part in cases:
        code, _, error = _command(capsys, "personalize", "--out", tmp_path / "a", *words)
        assert code == 2
        assert part in error
        assert "Traceback" not in error
    assert not (tmp_path / "a").exists()
