"""Training: repeatable, resumable, loud when it fails."""

import json
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from dive_fast.io import sha256_file, write_json
from dive_fast.json_files import read_json
from dive_fast.reid.data import dataset
from dive_fast.reid.data.augment import normalise
from dive_fast.reid.data.batches import batches, make_batch
from dive_fast.reid.data.config import AugmentConfig
from dive_fast.reid.data.dataset import load_images
from dive_fast.reid.data.sampler import PairSampler
from dive_fast.reid.models.config import ModelConfig
from dive_fast.reid.training import checkpoint
from dive_fast.reid.training import train as training
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.reid.training.config import ReidConfig, ValidationConfig, config_from_dict, learning_rate
from dive_fast.reid.training.train_state import MOST_SKIPPED, TrainState
from dive_fast.types import DiveError, to_dict
from tests.support.city import log, weights
from tests.support.city import train as run
from tests.support.refusals import refused


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_equal_seeds_give_equal_weights_and_others_do_not(city, tiny, tmp_path):
    torch.manual_seed(11)
    first = run(city["train"], tiny, tmp_path / "a")
    torch.manual_seed(12)  # what others drew before must not matter
    second = run(city["train"], tiny, tmp_path / "b")
    drawn = torch.rand(1)
    torch.manual_seed(12)
    assert torch.equal(torch.rand(1), drawn)  # the global generator is left alone
    third = run(city["train"], replace(tiny, seed=1), tmp_path / "c")
    assert equal(weights(first), weights(second)) and not equal(weights(first), weights(third))
    rows = log(first)
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert set(rows[0]) == {"step", "lr", "loss", "cross_entropy", "triplet", "accuracy", "gradient_norm"}
    assert sorted(p.name for p in first.iterdir()) == ["log.jsonl", "model.safetensors", "reid.json"]


def test_a_stopped_run_goes_on_to_the_same_result_and_a_cache_changes_nothing(city, tiny, tmp_path, monkeypatch):
    whole = run(city["train"], tiny, tmp_path / "whole")
    again = partial(run, city["train"], tiny, tmp_path / "stopped", save_every=2, cache=tmp_path / "cache")
    batch = PairSampler.batch

    def stop(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(PairSampler, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        again()
    assert (tmp_path / "stopped" / "state.pt").exists() and not (tmp_path / "stopped" / "reid.json").exists()
    monkeypatch.setattr(PairSampler, "batch", batch)
    resumed = again()
    assert equal(weights(whole), weights(resumed)) and list((tmp_path / "cache").glob("images-*.u8"))
    assert (resumed / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()


def test_weights_of_others_are_kept(city, tiny, tmp_path):
    """Also after a kill before the first step, and files that training does not write stay where they are."""
    (tmp_path / "log.txt").write_text("of the shell")
    (tmp_path / "model.safetensors").write_text("thesis")
    refused("model.safetensors", run, city["train"], tiny, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "thesis"
    (tmp_path / "model.safetensors").unlink()
    run(city["train"], tiny, tmp_path)
    (tmp_path / "state.pt").write_bytes(b"of a run that was killed at its very end")
    run(city["train"], tiny, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"log.jsonl", "log.txt", "model.safetensors", "reid.json"}


def test_a_run_killed_before_its_first_step_goes_on(city, tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(PairSampler, "batch", lambda self, step: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(city["train"], tiny, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "state.pt").exists()
    stopped, whole = (run(city["train"], tiny, tmp_path / name) for name in ("stopped", "whole"))
    assert equal(weights(stopped), weights(whole)) and log(stopped) == log(whole)


def test_a_finished_run_is_not_repeated_and_another_one_is_refused(city, tiny, tmp_path, monkeypatch):
    run(city["train"], tiny, tmp_path)
    monkeypatch.setattr(training, "load_images", None)
    assert run(city["train"], tiny, tmp_path) == tmp_path
    for samples, config in ((city["train"], replace(tiny, lr=1e-4)), (city["train"][:-1], tiny)):
        refused(tmp_path.name, run, samples, config, tmp_path)


def test_a_stopped_run_of_another_config_or_a_damaged_one_is_refused(city, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "finish", lambda *a: None)
    run(city["train"], tiny, tmp_path, save_every=2)
    refused("another config", run, city["train"], replace(tiny, lr=1e-4), tmp_path)
    whole, stored = (tmp_path / "state.pt").read_bytes(), torch.load(tmp_path / "state.pt", weights_only=True)
    best = {"best": {"step": 2, "val_map": 0.5}}
    (tmp_path / "state.pt").write_bytes(b"half a file")
    refused("damaged", run, city["train"], tiny, tmp_path)
    for change in (
        {"step": -(10**18)},
        {"rows": []},
        *(
            {"rows": [*stored["rows"][:-1], stored["rows"][-1] | odd]}
            for odd in ({5: 1.0}, {"lr": math.nan}, {"lr": "x"})
        ),
        {"best": {"step": 1}},
        {**best, "best_weights": {}},
        {**best, "best_weights": dict.fromkeys(stored["model"], 5)},
        {**best, "best_weights": {name: tensor[None] for name, tensor in stored["model"].items()}},
        {"model": {}},
        {"optimizer": {}},
        {"skipped": "x"},
    ):
        (tmp_path / "state.pt").write_bytes(whole)
        torch.save(torch.load(tmp_path / "state.pt", weights_only=True) | change, tmp_path / "state.pt")
        refused(r"state\.pt", run, city["train"], tiny, tmp_path)


def test_moved_data_are_the_same_data(city, tiny, tmp_path):
    sample = city["train"][0]
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(sample.path.read_bytes())
    assert dataset.fingerprint([sample]) == dataset.fingerprint([replace(sample, path=copy)])
    assert dataset.fingerprint([sample]) != dataset.fingerprint([replace(sample, pid="0009")])
    refused(r"gone\.png", dataset.fingerprint, [replace(sample, path=tmp_path / "gone.png")])


def test_a_loss_that_is_not_finite_names_the_step(city, tiny, tmp_path):
    config = replace(tiny, lr=1e20, warmup=0, optimizer="sgd")
    refused(r"at step \d+ .*lower lr", run, city["train"], config, tmp_path, error=DiveError)


def test_identities_without_infrared(city, tiny, tmp_path):
    samples = city["train"] + city["external"]
    for missing, dropped in (("visible", []), ("drop", ["0021", "0022", "0023", "0024"])):
        out = run(samples, replace(tiny, missing=missing, steps=2), tmp_path / missing)
        assert read_json(out / "reid.json", "")["dropped"] == dropped


@pytest.mark.slow
def test_epochs_hard_triplets_sgd_and_average_pooling(city, tiny, tmp_path):
    config = replace(tiny, model=replace(tiny.model, pooling="avg"), schedule="step", optimizer="sgd", backbone_lr=0.1)
    config = replace(config, steps=None, epochs=2, triplet="hard", synthetic_fraction=0.5)
    out = run(city["train"] + city["external"] + city["external_ir"], config, tmp_path)
    record = read_json(out / "reid.json", "")
    assert record["steps"] == 2 * 9  # 8 x 6 + 4 x 6 visible images, 8 in a batch
    assert (record["images"], record["infrared"], record["synthetic"]) == (8 * 12 + 48, 8 * 6 + 24, 24)


def test_learning_rates():
    config = ReidConfig(warmup=0.1, schedule="step", drops=(0.5, 0.75))
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == sorted(rates[:10]) and rates[0] == pytest.approx(1 / 11)
    assert [rates[10], rates[49], rates[50], rates[80]] == pytest.approx([1, 1, 0.1, 0.01])
    cosine = [learning_rate(step, 100, replace(config, schedule="cosine")) for step in range(100)]
    assert cosine[10] == 1 and cosine[55] == pytest.approx(0.5) and 0 < cosine[99] < 1e-3


def test_a_checkpoint_loads_as_it_was_and_damage_is_noticed(city, tiny, tmp_path):
    out = run(city["train"], tiny, tmp_path)
    model, config, record = load_model(out)
    assert config == tiny and not model.training
    assert equal(dict(model.state_dict()), weights(out))
    refused("nothing", load_model, tmp_path / "nothing")
    write_json(out / "reid.json", {**record, "sha256": "0" * 64})
    refused("train again", load_model, out)
    write_json(out / "reid.json", {"config": {}})
    refused("missing", load_model, out)
    write_json(out / "reid.json", {**record, "pids": 3})
    refused("pids", load_model, out)
    kept = weights(out)
    for changed in (
        {**kept, "more": torch.zeros(1)},
        {**kept, "neck.weight": torch.zeros(1)},
        {"neck.weight": torch.ones(3)},
    ):
        save_file(changed, out / "model.safetensors")
        write_json(out / "reid.json", {**record, "sha256": sha256_file(out / "model.safetensors")})
        refused(r"model\.safetensors", load_model, out)


def test_config_survives_json_and_refuses_what_it_does_not_know(tiny):
    shares = ((0.0, 0.5), (1.0, 0.0))
    full = replace(tiny, synthetic_schedule=shares, validation=ValidationConfig(4), drop_epochs=(1, 2))
    for config in (full, tiny):
        stored = json.loads(json.dumps(to_dict(config)))
        assert config_from_dict(stored, "x") == config
    assert config_from_dict({}, "x") == ReidConfig()
    for name in ("drops", "synthetic_schedule"):
        refused(f"{name} .*got 3", config_from_dict, {**stored, name: 3}, "x")
    refused("speed", config_from_dict, {**stored, "speed": 3}, "x")


OFF = AugmentConfig(flip=0, crop=0, erase=0, exchange=0, brightness=0)


@pytest.fixture
def drawn(city, tiny):
    """Images, and their sampler under the config `tiny`."""
    images = load_images(city["train"], 64, 32)
    return images, PairSampler(images, tiny, images.synthetic.numpy())


def test_cajs_batch_has_every_visible_image_twice(drawn, tiny):
    images, sampler = drawn
    config = replace(tiny, exchange_view=True, augment=OFF)
    batch, rows = make_batch(images, sampler, 3, config), torch.from_numpy(sampler.batch(3))
    visible = rows[~images.infrared[rows]]
    assert batch.labels.tolist() == images.labels[torch.cat([rows, visible])].tolist()
    assert batch.infrared.tolist() == [*images.infrared[rows].tolist(), *[False] * 8]
    seen = batch.pixels(config, "cpu")
    torch.testing.assert_close(seen[:16], normalise(images.images[rows]))
    for view, row in zip(seen[16:], visible, strict=True):
        channels = [normalise(images.images[row][c].expand(1, 3, -1, -1))[0] for c in range(3)]
        assert sum(torch.allclose(view, channel, atol=1e-5) for channel in channels) == 1
    single = make_batch(images, sampler, 3, replace(config, exchange_view=False))
    assert torch.equal(seen[:16], single.pixels(config, "cpu"))


def test_batches_ahead_are_the_batches_of_their_steps(drawn, tiny):
    images, sampler = drawn
    ahead = list(batches(images, sampler, range(2, 6), tiny))
    assert len(ahead) == 4
    for step, batch in zip(range(2, 6), ahead, strict=True):
        alone = make_batch(images, sampler, step, tiny)
        assert torch.equal(batch.images, alone.images) and torch.equal(batch.labels, alone.labels)
        assert torch.equal(batch.pixels(tiny, "cpu"), alone.pixels(tiny, "cpu"))


def test_clipping_bounds_the_step(drawn, tiny):
    """Nesterov's first step is 1.9 times the gradient, whose norm is the bound where it was above."""
    images, sampler = drawn
    config = replace(tiny, optimizer="sgd", lr=0.5, weight_decay=0.0, clip=0.01)
    state, batch = TrainState(config, len(images.pids), "cpu"), make_batch(images, sampler, 0, config)
    before = [p.detach().clone() for p in state.parameters]
    found = state.step(batch, 1.0, 1)
    moved = sum((a - b).detach().square().sum() for a, b in zip(state.parameters, before, strict=True)).sqrt()
    assert found["gradient_norm"] > 0.1 and float(moved) == pytest.approx(0.5 * 1.9 * 0.01, rel=1e-3)


def test_gems_exponent_learns_or_stays(drawn, tiny):
    images, sampler = drawn
    batch = make_batch(images, sampler, 0, tiny)
    for learns in (True, False):
        state = TrainState(replace(tiny, gem_learns=learns), len(images.pids), "cpu")
        state.step(batch, 1.0, 1)
        assert (float(state.model.pool.exponent.detach()) != 3.0) == learns


def test_a_gradient_that_is_not_finite_names_the_step(drawn, tiny):
    images, sampler = drawn
    state = TrainState(tiny, len(images.pids), "cpu")
    state.parameters[0].register_hook(lambda gradient: gradient * float("inf"))
    message = r"gradient's norm is (inf|nan) at step 7 \(loss \d.*lower lr"
    refused(message, state.step, make_batch(images, sampler, 0, tiny), 1.0, 7, error=DiveError)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_resumes_and_stays_near(city, tiny, tmp_path, monkeypatch, precision):
    tiny = replace(tiny, steps=4, model=ModelConfig(height=32, width=32, stripes=1))
    half = replace(tiny, precision=precision)
    plain, whole = run(city["train"], tiny, tmp_path / "fp32"), run(city["train"], half, tmp_path / "whole")
    assert {t.dtype for t in weights(whole).values()} == {torch.float32, torch.int64}
    assert not equal(weights(plain), weights(whole))
    first, second = (log(out)[0]["loss"] for out in (plain, whole))
    assert second == pytest.approx(first, rel=0.02) and first != second
    monkeypatch.setattr(checkpoint, "finish", lambda *a: None)
    run(city["train"], half, tmp_path / "stopped", save_every=3)
    state = torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)
    assert (state["scaler"] is None) == (precision == "bf16") and state["step"] == 3
    monkeypatch.undo()
    assert equal(weights(whole), weights(run(city["train"], half, tmp_path / "stopped", save_every=3)))


def test_a_loss_scale_too_high_is_lowered_and_one_that_never_fits_is_an_error(city, tiny):
    config = replace(tiny, precision="fp16", model=ModelConfig(height=32, width=32, stripes=1))
    images = load_images(city["train"], 32, 32)
    batch = make_batch(images, PairSampler(images, config, images.synthetic.numpy()), 0, config)
    state, other = (TrainState(config, len(images.pids), "cpu") for _ in range(2))
    state.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 2.0**60})
    before = [p.detach().clone() for p in state.parameters]
    found = state.step(batch, 1.0, 1)
    assert found["skipped"] == 1 and found["scale"] == 2.0**60 and "gradient_norm" not in found
    assert all(torch.equal(a, b) for a, b in zip(state.parameters, before, strict=True))
    other.restore(state.state())
    assert (other.scaler.get_scale(), other.skipped) == (2.0**59, 1)
    other.scaler.load_state_dict({**state.scaler.state_dict(), "scale": 1024.0})
    assert other.step(batch, 1.0, 2)["skipped"] == other.skipped == 0
    state.skipped = MOST_SKIPPED - 1
    message = f"at step 20 .*for {MOST_SKIPPED} steps in a row.*fp32 .now fp16"
    refused(message, state.step, batch, 1.0, 20, error=DiveError)


def test_people_that_do_not_fit_are_refused_before_any_image_is_decoded(city, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_images", None)
    refused("0021", run, city["train"] + city["external"], tiny, tmp_path)
    refused("more than once", run, city["train"] * 2, tiny, tmp_path)


def test_a_tensorboard_log_names_the_extra_or_is_written(city, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    refused(r"dive-fast\[tensorboard\]", run, city["train"], tiny, tmp_path, tensorboard=True, error=DiveError)
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(tiny, validation=ValidationConfig(people=2, every_steps=3))
    out = run(city["train"], config, tmp_path, tensorboard=True)
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([row["loss"] for row in log(out)])
    assert [e.step for e in events.Scalars("val_map")] == [3, 6]
