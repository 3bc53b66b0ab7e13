"""The best weights are chosen on people of neither training nor test, and are the ones that come out."""

from dataclasses import replace

import pytest
import torch

from dive_fast.data.writers import write_ids
from dive_fast.io import sha256_file
from dive_fast.json_files import read_json
from dive_fast.reid.data.dataset import load_images
from dive_fast.reid.data.sampler import PairSampler
from dive_fast.reid.evaluation.evaluate import embed
from dive_fast.reid.evaluation.task import RetrievalTask
from dive_fast.reid.models.model import ReidModel
from dive_fast.reid.training.checkpoint import load_model
from dive_fast.reid.training.config import ValidationConfig
from dive_fast.reid.training.validation import check_validation, held_out, refuse_test_people, split
from dive_fast.types import DiveError
from tests.support.city import log, make_samples, train, weights
from tests.support.cli import last_json
from tests.support.refusals import refused


@pytest.fixture
def held(tiny):
    """A run that swings, so that its last weights are not its best; 3 people held out, scored every 2 of 12 steps."""
    return replace(
        tiny, steps=12, lr=0.02, warmup=0.0, schedule="step", drops=(), validation=ValidationConfig(3, every_steps=2)
    )


def test_people_are_drawn_among_those_with_both_real_modalities(city):
    samples = city["train"] + city["external"] + city["external_ir"]  # the externals' infrared is synthetic
    config = ValidationConfig(people=4)
    people = held_out(samples, config)
    assert len(people) == 4 and set(people) < {s.pid for s in city["train"]} and people == tuple(sorted(people))
    assert held_out(samples[::-1], config) == people != held_out(samples, replace(config, split=1))
    without = [s for s in samples if s.pid != people[0]]
    assert set(people[1:]) < set(held_out(without, config))  # one gone, and the others stay
    refused("people 9 .* 8 identities", held_out, samples, replace(config, people=9))


def test_nobody_is_on_both_sides_and_synthetic_images_on_neither(city):
    made = [replace(s, source="synthetic") for s in city["train"][::5]]
    samples = [s for s in city["train"] if s not in city["train"][::5]] + made
    people = held_out(samples, ValidationConfig(people=3))
    train, val = split(samples, people)
    assert {s.pid for s in val} == set(people) and not {s.pid for s in train} & set(people)
    assert {s.source for s in val} == {"real"}
    assert len(train) + len(val) == len(samples) - sum(s.pid in people for s in made)
    check_validation(train, val)


def test_sets_that_would_choose_wrongly_are_refused(city):
    train, val = city["train"], city["query"] + city["gallery"]
    for bad, message in (
        (val + train[:1], "1 identities .*0001"),
        ([replace(val[0], source="synthetic"), *val[1:]], "is a synthetic image"),
        (city["query"], "got only ir"),
    ):
        refused(message, check_validation, train, bad)
    refused("1 identities .*0103", refuse_test_people, val, {"0103", "0999"})
    refuse_test_people(val, {"0999"})


@pytest.mark.slow
def test_the_best_weights_are_kept_named_and_loaded(city, held, tmp_path):
    out = train(city["train"], held, tmp_path)
    record = read_json(out / "reid.json", "")
    scored = {row["step"]: row["val_map"] for row in log(out) if "val_map" in row}
    assert list(scored) == [2, 4, 6, 8, 10, 12]
    best = max(scored, key=scored.get)
    assert scored[best] > scored[12], "a run whose last weights are its best shows nothing here"
    assert (record["best"]["step"], record["best"]["val_map"]) == (best, scored[best])
    people = record["validation"]["people"]
    assert len(people) == 3 and not set(people) & set(record["pids"]) and len(record["pids"]) == 5
    assert record["images"] == 5 * 12 and record["validation"]["query"] == 3 * 6

    samples = [s for s in city["train"] if s.pid in people]
    sides = [[s for s in samples if s.modality == kind] for kind in ("ir", "rgb")]
    task = RetrievalTask.from_samples(*sides)
    for which, step in (("best", best), ("last", 12), (None, best)):
        model, config, found = load_model(out, which=which)
        assert config == held and found["which"] == (which or "best")
        file = out / ("model.safetensors" if which == "last" else "best.safetensors")
        assert found["sha256"] == sha256_file(file)
        scores = task.score_features(*(embed(model, load_images(side, 64, 32)) for side in sides))
        assert task.result(scores, checkpoint="").map == pytest.approx(scored[step])
    (out / "best.safetensors").write_bytes((out / "model.safetensors").read_bytes())
    refused(r"best\.safetensors", load_model, out)


def test_without_a_validation_there_is_no_best(city, tiny, tmp_path):
    out = train(city["train"], replace(tiny, steps=2), tmp_path)
    assert load_model(out)[2]["which"] == "last"
    refused("no validation", load_model, out, which="best")


@pytest.mark.slow
def test_validating_changes_nothing_of_the_training(city, held, tmp_path):
    """The same people left out by hand and no validation: the same last weights."""
    out = train(city["train"], held, tmp_path / "with")
    people = read_json(out / "reid.json", "")["validation"]["people"]
    rest = [s for s in city["train"] if s.pid not in people]
    plain = train(rest, replace(held, validation=ValidationConfig()), tmp_path / "without")
    a, b = weights(out), weights(plain)
    assert all(torch.equal(a[name], b[name]) for name in b)
    scored = replace(held, validation=ValidationConfig(every_steps=2))
    val = [s for s in city["train"] if s.pid in people]
    given = train(rest, scored, tmp_path / "given", val=val)
    assert read_json(given / "reid.json", "")["best"]["val_map"] == read_json(out / "reid.json", "")["best"]["val_map"]


@pytest.mark.slow
def test_a_stopped_run_chooses_what_it_would_have_chosen(city, held, tmp_path, monkeypatch):
    whole = train(city["train"], held, tmp_path / "whole")
    batch = PairSampler.batch
    for stop_at in (5, 10):

        def stop(self, step, stop_at=stop_at):
            if step == stop_at:
                raise KeyboardInterrupt
            return batch(self, step)

        monkeypatch.setattr(PairSampler, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(city["train"], held, tmp_path / "stopped", save_every=3)
    monkeypatch.setattr(PairSampler, "batch", batch)
    resumed = train(city["train"], held, tmp_path / "stopped", save_every=3)
    for name in ("best.safetensors", "model.safetensors", "log.jsonl", "reid.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_features_that_cannot_be_scored_name_the_step(city, held, tmp_path, monkeypatch):
    embed = ReidModel.embed
    monkeypatch.setattr(ReidModel, "embed", lambda *a: embed(*a) * float("nan"))
    with pytest.raises(DiveError, match=r"validation after step 2: .*NaN.*lower lr") as caught:
        train(city["train"], held, tmp_path)
    assert caught.value.exit_code == 1


@pytest.mark.slow
def test_validation_every_epoch_by_default(city, held, tmp_path):
    config = replace(held, steps=14, validation=ValidationConfig(people=3))
    out = train(city["train"], config, tmp_path)  # 5 x 6 images, 8 in a batch: 4 steps an epoch
    assert [row["step"] for row in log(out) if "val_map" in row] == [4, 8, 12, 14]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A SYSU tree: people 1 to 5 to train, 6 to 8 to validate, 9 to test."""
    root = tmp_path_factory.mktemp("tree")
    make_samples(root, range(1, 10), (1, 2, 3, 6), each=2)
    names = [f"{pid:04d}" for pid in range(1, 10)]
    write_ids(root, train=names[:5], val=names[5:8], test=names[8:])
    return root


@pytest.fixture
def command(tree, tmp_path):
    small = "--device cpu --steps 2 --identities 4 --per-modality 2 --height 64 --width 32"
    return f"reid train --real sysu:{tree} --out {tmp_path}/out {small}"


def test_the_command_takes_a_val_list_and_leaves_its_people_out(command, tree, tmp_path, run):
    code, out, error = run(f"{command} --val sysu:{tree} --json")
    assert code == 0, error
    assert "3 people of --val" in error
    record = read_json(tmp_path / "out" / "reid.json", "")
    assert record["pids"] == ["0001", "0002", "0003", "0004", "0005"]
    assert record["validation"]["people"] == ["0006", "0007", "0008"]
    assert last_json(out)["best"]["step"] == 2


def test_the_command_refuses_test_people_for_validation(command, tree, tmp_path, run):
    vals = {f"sysu:{tree},split=test": "0009", f"sysu:{tree},split=all": "0009", f"llcm:{tree}": "llcm"}
    for val, message in vals.items():
        code, _, error = run(f"{command} --val {val}")
        assert code == 2 and message in error
    assert not (tmp_path / "out").exists()


def test_the_command_passes_recipes_and_settings_on(command, tmp_path, run, step):
    changed = "--recipe caj --backbone pocket --no-nonlocal-blocks --drop-epochs 2,3 --lr 0.01"
    step(f"{command} {changed} --validation-people 2")
    config = read_json(tmp_path / "out" / "reid.json", "")["config"]
    changed = {"triplet": "squared", "exchange_view": True, "drop_epochs": [2, 3], "lr": 0.01}
    assert {name: config[name] for name in changed} == changed
    assert (config["steps"], config["epochs"], config["smoothing"], config["seed"]) == (2, None, 0, 0)
    assert config["model"] == config["model"] | {"backbone": "pocket", "height": 64, "stripes": 1}
    for bad, message in (
        ("--erase 2", "--erase"),
        ("--speed 3", "--speed"),
        ("--synthetic-schedule 0-1", "PART:SHARE"),
        ("--synthetic-schedule 0:0.5,1:0 --synthetic-fraction 0.5", "not both"),
    ):
        code, _, error = run(f"{command} {bad}")
        assert code == 2 and message in error
