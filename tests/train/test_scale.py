"""What lets personalising go on at scale: precision, parts, checkpointing, prepared sets; and settings that are refused."""

import shutil
import sys
from dataclasses import replace

import pytest
import torch

from dive_fast.models import load_adapter, load_bundle
from dive_fast.train import trainer
from dive_fast.train.config import Compute, PersonalizeConfig
from dive_fast.train.model import PersonalizedModel
from dive_fast.train.photos import encode_photos
from dive_fast.train.trainer import Trainer
from dive_fast.types import DiveError
from tests.support.refusals import refused
from tests.support.training import first_gradients, first_phase, interrupted

pytestmark = pytest.mark.slow

CONFIG = PersonalizeConfig(identity_steps=3, steps=5, batch=4, rank=2, warmup=1, save_every=2)


@pytest.fixture(scope="module")
def plain(learn, photos, tmp_path_factory):
    return learn(photos, tmp_path_factory.mktemp("plain") / "adapter", CONFIG)


def test_checkpointing_changes_no_bit(learn, photos, plain, tmp_path):
    adapter = learn(photos, tmp_path / "a", replace(CONFIG, compute=Compute(checkpointing=True)))
    assert adapter.fingerprint == plain.fingerprint


def test_parts_change_rounding_alone(learn, photos, plain, tmp_path):
    adapter = learn(photos, tmp_path / "a", replace(CONFIG, compute=Compute(accumulate=2)))
    torch.testing.assert_close(adapter.embeddings, plain.embeddings, rtol=1e-4, atol=1e-6)
    learned = max(tensor.abs().max() for key, tensor in plain.lora.items() if "lora_B" in key)
    for key, tensor in adapter.lora.items():
        assert (tensor - plain.lora[key]).abs().max() < 0.01 * learned


def test_a_run_stopped_for_lack_of_memory_goes_on_in_parts(learn, photos, plain, tmp_path, monkeypatch):
    """How numbers are computed is no other run; in another precision it is."""
    with interrupted(lambda model, step: step == 3 and model.lora[0].requires_grad):
        learn(photos, tmp_path / "a", CONFIG)
    refused(r"identities\.state", learn, photos, tmp_path / "a", replace(CONFIG, compute=Compute("bf16")))
    parts = replace(CONFIG, compute=Compute(accumulate=4, checkpointing=True))
    adapter = learn(photos, tmp_path / "a", parts)
    assert torch.equal(adapter.embeddings, plain.embeddings)  # learned before the stop


def _gradients(base, photos, tmp_path, precision):
    config = replace(CONFIG, identity_steps=0, compute=Compute(precision))
    return first_gradients(*first_phase(base, photos, config, tmp_path, None))[:2]


def test_bf16_teaches_about_the_same(base, photos, tmp_path):
    """bf16 has 8 bits, so a gradient errs by some 2**-8 of its size; rows and LoRA themselves stay float32."""
    pairs = zip(*(_gradients(base, photos, tmp_path, precision) for precision in ("no", "bf16")), strict=True)
    for exact, half in pairs:
        assert half.dtype == torch.float32
        assert 0 < (half - exact).norm() / exact.norm() < 0.05


def test_a_run_in_bf16_leaves_a_float32_adapter(learn, photos, plain, tmp_path):
    adapter = learn(photos, tmp_path / "a", replace(CONFIG, compute=Compute("bf16")))
    assert adapter.metadata["compute"]["mixed_precision"] == "bf16"
    for tensor in (adapter.embeddings, *adapter.lora.values()):
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())
    torch.testing.assert_close(adapter.embeddings, plain.embeddings, rtol=0, atol=0.02)


def test_a_mix_of_words_is_not_rounded_to_half(base, photos):
    config = replace(CONFIG, phrase="{red|green|blue} person")
    model = Trainer(load_bundle(base), photos, config, None, "cpu", False).model
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.rows()
    assert torch.equal(mixed, model.rows())


@pytest.mark.parametrize("weighting", ["min-snr", "plain"])
def test_the_weighting_chosen_is_that_of_both_phases(learn, photos, tmp_path, monkeypatch, weighting):
    seen = set()
    real = PersonalizedModel.loss

    def watched(self, step, *args):
        seen.add((args[-1].weighting, args[-1].snr_gamma, args[-1].noisy_fraction))
        return real(self, step, *args)

    monkeypatch.setattr(PersonalizedModel, "loss", watched)
    learn(photos, tmp_path / "a", replace(CONFIG, weighting=weighting, snr_gamma=3.0))
    assert seen == {(weighting, 3.0, 0.4), (weighting, 3.0, 0.75)}


def test_latents_of_a_prepared_set_teach_what_its_photos_teach(base, learn, photos, plain, tmp_path, monkeypatch):
    latents = encode_photos(load_bundle(base), photos[:-2], progress=False)
    first = learn(photos[:-2], tmp_path / "files", CONFIG)
    more = encode_photos(load_bundle(base), photos[-2:], progress=False)
    new = learn(photos[-2:], tmp_path / "new", CONFIG, init_from=first)
    monkeypatch.setattr(trainer, "encode_photos", None)
    again = learn(latents, tmp_path / "latents", CONFIG)
    assert again.fingerprint == first.fingerprint
    onto = learn(more, tmp_path / "more", CONFIG, init_from=first)
    assert onto.fingerprint == new.fingerprint
    refused("--words-from", learn, latents, tmp_path / "words", replace(CONFIG, words_from="pocket"))


def test_states_that_a_kill_left_beside_a_finished_adapter_are_removed(learn, photos, tmp_path):
    out, work = tmp_path / "a", tmp_path / "a.training"
    learn(photos, out, CONFIG)
    for name in ("identities.state", "personalize.state", "class-0123.safetensors"):
        (work / name).touch()
    learn(photos, out, CONFIG)
    assert sorted(file.name for file in work.iterdir()) == ["identities-loss.jsonl", "lock", "personalize-loss.jsonl"]


def test_what_cannot_work_is_said_and_leaves_nothing_behind(learn, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    refused("no training photos", learn, [], tmp_path / "a", CONFIG)
    for compute, words in ((Compute(accumulate=3), "a batch of 4 .* 3 parts"), (Compute("fp16"), "fp16")):
        refused(words, learn, photos, tmp_path / "a", replace(CONFIG, compute=compute))
    board = replace(CONFIG, tensorboard=True)
    refused(r"dive-fast\[tensorboard\]", learn, photos, tmp_path / "a", board, error=DiveError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("identity_steps", [0, 3])
def test_people_whom_no_batch_teaches_are_named(learn, photos, tmp_path, identity_steps):
    """Person 1 in infrared alone, in batches of RGB; and, learned with the LoRA, everybody in batches of infrared."""
    config = replace(CONFIG, identity_steps=identity_steps)
    hidden = [s for s in photos if s.pid != "0001" or s.modality == "ir"]
    for settings in ({"ir_fraction": 0.0}, {"batch": 1, "ir_fraction": 0.4}):
        refused("first '0001'", learn, hidden, tmp_path / "a", replace(config, **settings))
    infrared = replace(config, ir_fraction=1.0)
    if identity_steps:  # they learn first, from what there is: RGB alone
        learn(photos, tmp_path / "b", infrared)
    else:
        refused("4 identities", learn, photos, tmp_path / "b", infrared)
        refused("first '0004'", learn, photos, tmp_path / "b", replace(infrared, identities_from_ir=True))
    assert not (tmp_path / "a.training").exists()


def test_the_command_learns_from_a_prepared_set_without_its_raw_tree(base, folders, tmp_path, step):
    raw = shutil.copytree(folders[0], tmp_path / "raw")
    step(f"prepare --out {tmp_path}/prepared --model {base} --photos folder:{raw}")
    short = f"--identity-steps 2 --steps 2 --batch 2 --rank 2 --model {base} --exclude 0002"
    for out, photos in (("a", f"--photos folder:{raw}"), ("b", f"--prepared {tmp_path}/prepared")):
        assert step(f"personalize {photos} --out {tmp_path}/{out} {short}")["photos"] == 6
        shutil.rmtree(raw, ignore_errors=True)
    from_files, from_latents = load_adapter(tmp_path / "a"), load_adapter(tmp_path / "b")
    assert [i.pid for i in from_latents.identities] == ["0001", "0003", "0004"]
    # encoded in batches of another size
    torch.testing.assert_close(from_latents.embeddings, from_files.embeddings, rtol=1e-3, atol=1e-4)


def test_the_command_refuses_options_that_do_not_go_together(base, photos, tmp_path, run):
    (tmp_path / "none").mkdir()
    raw = f"--photos folder:{photos[0].path.parent}"
    for words, part in (
        (f"--prepared p {raw}", "--prepared"),
        (f"{raw} --prior-photos {tmp_path}", "--prior-weight"),
        (f"{raw} --prior-weight 1 --prior-photos {tmp_path}/none", tmp_path.name),
        (f"--prepared {tmp_path}/none --model {base}", "none"),
    ):
        code, _, error = run(f"personalize --out {tmp_path}/a {words}")
        assert code == 2
        assert part in error
        assert "Traceback" not in error
    assert not (tmp_path / "a").exists()
