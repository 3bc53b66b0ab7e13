"""Training: repeatable, resumable, loud when it fails."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from dive_fast.io import read_json, write_json
from dive_fast.reid import checkpoint, dataset
from dive_fast.reid import train as training
from dive_fast.reid.checkpoint import load_model
from dive_fast.reid.config import ReidConfig, config_from_dict, learning_rate
from dive_fast.reid.sampler import PairSampler
from dive_fast.reid.train import train_reid
from dive_fast.types import DiveError, InputError, to_dict


def weights(out):
    return load_file(out / "model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def run(samples, config, out, **options):
    return train_reid(samples, config, out, progress=False, **options)


def test_equal_seeds_give_equal_weights_and_others_do_not(city, tiny, tmp_path):
    torch.manual_seed(11)
    first = run(city["train"], tiny, tmp_path / "a")
    torch.manual_seed(12)  # what others drew before must not matter
    second = run(city["train"], tiny, tmp_path / "b")
    third = run(city["train"], replace(tiny, seed=1), tmp_path / "c")
    assert equal(weights(first), weights(second)) and not equal(weights(first), weights(third))
    rows = [json.loads(line) for line in (first / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert set(rows[0]) == {"step", "lr", "loss", "cross_entropy", "triplet", "accuracy"}
    assert sorted(p.name for p in first.iterdir()) == ["log.jsonl", "model.safetensors", "reid.json"]


def test_the_global_generator_is_left_alone(city, tiny, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    run(city["train"], replace(tiny, steps=1), tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_a_stopped_run_goes_on_to_the_same_result(city, tiny, tmp_path, monkeypatch):
    whole = run(city["train"], tiny, tmp_path / "whole")
    batch = PairSampler.batch

    def stop(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(PairSampler, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(city["train"], tiny, tmp_path / "stopped", save_every=2)
    assert (tmp_path / "stopped" / "state.pt").exists() and not (tmp_path / "stopped" / "reid.json").exists()
    monkeypatch.setattr(PairSampler, "batch", batch)
    resumed = run(city["train"], tiny, tmp_path / "stopped", save_every=2)
    assert equal(weights(whole), weights(resumed))
    assert (resumed / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()


def test_a_finished_run_is_not_repeated_and_another_one_is_refused(city, tiny, tmp_path, monkeypatch):
    run(city["train"], tiny, tmp_path)
    monkeypatch.setattr(training, "load_images", None)
    assert run(city["train"], tiny, tmp_path) == tmp_path
    for samples, config in ((city["train"], replace(tiny, lr=1e-4)), (city["train"][:-1], tiny)):
        with pytest.raises(InputError, match="another config or other images"):
            run(samples, config, tmp_path)


def test_a_stopped_run_of_another_config_or_a_damaged_one_is_refused(city, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "finish", lambda *a: None)
    run(city["train"], tiny, tmp_path, save_every=2)
    with pytest.raises(InputError, match="another config"):
        run(city["train"], replace(tiny, lr=1e-4), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(InputError, match="damaged"):
        run(city["train"], tiny, tmp_path)


def test_moved_data_are_the_same_data(city, tiny, tmp_path):
    sample = city["train"][0]
    copy = tmp_path / "elsewhere.png"
    copy.write_bytes(sample.path.read_bytes())
    assert dataset.fingerprint([sample]) == dataset.fingerprint([replace(sample, path=copy)])
    assert dataset.fingerprint([sample]) != dataset.fingerprint([replace(sample, pid="0009")])
    with pytest.raises(InputError, match=r"gone\.png"):
        dataset.fingerprint([replace(sample, path=tmp_path / "gone.png")])


def test_a_loss_that_is_not_finite_names_the_step(city, tiny, tmp_path):
    with pytest.raises(DiveError, match=r"at step \d+ .*lower lr"):
        run(city["train"], replace(tiny, lr=1e20, warmup=0, optimizer="sgd"), tmp_path)


def test_identities_without_infrared(city, tiny, tmp_path):
    samples = city["train"] + city["external"]
    with pytest.raises(InputError, match="0021"):
        run(samples, tiny, tmp_path / "refused")
    visible = run(samples, replace(tiny, missing="visible", steps=2), tmp_path / "visible")
    dropped = run(samples, replace(tiny, missing="drop", steps=2), tmp_path / "dropped")
    assert read_json(visible / "reid.json", "")["dropped"] == []
    assert read_json(dropped / "reid.json", "")["dropped"] == ["0021", "0022", "0023", "0024"]


def test_epochs_hard_triplets_sgd_and_average_pooling(city, tiny, tmp_path):
    config = replace(
        tiny, model=replace(tiny.model, pooling="avg"), steps=None, epochs=2, triplet="hard", optimizer="sgd",
        schedule="step", backbone_lr=0.1, synthetic_share=0.5, identities=4,
    )  # fmt: skip
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
    with pytest.raises(InputError, match="does not exist"):
        load_model(tmp_path / "nothing")
    write_json(out / "reid.json", {**record, "sha256": "0" * 64})
    with pytest.raises(InputError, match="train again"):
        load_model(out)
    write_json(out / "reid.json", {"config": {}})
    with pytest.raises(InputError, match="missing"):
        load_model(out)


def test_config_survives_json_and_refuses_what_it_does_not_know(tiny):
    stored = json.loads(json.dumps(to_dict(tiny)))
    assert config_from_dict(stored, "x") == tiny
    with pytest.raises(InputError, match="speed"):
        config_from_dict({**stored, "speed": 3}, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "either steps or epochs"),
        ({"steps": None}, "either steps or epochs"),
        ({"steps": 0}, "at least 1"),
        ({"optimizer": "lion"}, "lion"),
        ({"schedule": "flat"}, "flat"),
        ({"triplet": "soft"}, "soft"),
        ({"lr": 0.0}, "lr"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_bad_config(change, message):
    with pytest.raises(InputError, match=message):
        ReidConfig(**change)
