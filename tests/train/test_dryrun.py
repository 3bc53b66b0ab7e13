"""A dry run: true numbers, nothing written, and the errors that the run itself would raise."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dive_fast.models import load_bundle
from dive_fast.train import run as room
from dive_fast.train import trainer
from dive_fast.train.config import PersonalizeConfig, Prior, Samples
from dive_fast.train.dryrun import dry_run
from dive_fast.train.personalize import personalize
from dive_fast.train.photos import BalancedSampler, encode_photos, samples_of
from dive_fast.training_state import read_state
from dive_fast.types import DiveError
from tests.support.cli import last_json
from tests.support.refusals import refused
from tests.support.training import interrupted

pytestmark = pytest.mark.slow

CONFIG = PersonalizeConfig(
    identity_steps=12,
    steps=23,
    batch=4,
    rank=2,
    warmup=1,
    save_every=5,
    prior=Prior(1.0, "a person", 3),
    samples=Samples(sheet_every=10, sheet_people=2, sample_steps=1),
)


def test_a_dry_run_writes_nothing_and_says_what_the_run_takes(base, learn, photos, tmp_path, monkeypatch):
    forecast = dry_run(load_bundle(base), photos, tmp_path / "adapter", CONFIG)
    assert not list(tmp_path.iterdir())
    assert [forecast.numbers[name] for name in ("photos", "people", "cameras")] == [14, 4, ["cam1", "cam3"]]
    steps = [(phase.name, phase.steps, phase.done) for phase in forecast.stages]
    assert steps == [("identities", 12, 0), ("personalize", 23, 0)]
    assert forecast.stages[0].trainable == 4 * 32
    states = {}
    real = room.remove_states  # the states, read before a finished run removes them
    keep = lambda work: states.update({file.stem: read_state(file) for file in work.glob("*.state")})  # noqa: E731
    monkeypatch.setattr(room, "remove_states", keep)
    adapter = learn(photos, tmp_path / "adapter", CONFIG)
    assert forecast.stages[1].trainable == sum(tensor.numel() for tensor in adapter.lora.values())
    for phase in forecast.stages:
        moments = states[phase.name]["optimizer"]["state"].values()
        kept = [*states[phase.name]["average"], *(m[name] for m in moments for name in ("exp_avg", "exp_avg_sq"))]
        assert phase.optimizer_bytes == sum(tensor.nbytes for tensor in kept)
        assert phase.seconds > 0
    assert forecast.data_bytes == encode_photos(load_bundle(base), photos, progress=False).latents.nbytes
    written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert 0.01 * written < written - 10_000 < forecast.disk_bytes  # at most, states and class photos included
    real(tmp_path / "adapter.training")
    again = dry_run(load_bundle(base), photos, tmp_path / "adapter", CONFIG)
    assert [phase.done for phase in again.stages] == [12, 23]  # it would only be read


def test_expected_views_are_those_of_the_draws(photos):
    """Of 14 photos of four people, one of whom has no infrared."""
    for share in (0.0, 0.5, 1.0):
        draw = BalancedSampler(photos, 4, share, seed=3)
        views = Counter(photos[i].pid for step in range(600) for i in draw(step)[0])
        for pid, expected in draw.expected(600).items():
            assert abs(views[pid] - expected) < 5 * np.sqrt(expected) + 1e-9
        assert sum(draw.expected(600).values()) == pytest.approx(2400)


def test_people_that_are_hardly_seen_are_counted(base, photos, tmp_path):
    forecast = dry_run(load_bundle(base), photos, tmp_path / "a", replace(CONFIG, identity_steps=0, steps=1, batch=2))
    assert forecast.numbers["seen"] == pytest.approx((0.5, 0.25, 1 / 3 + 0.25))
    assert forecast.numbers["hardly_seen"] == 4
    assert "4 identities have less than one view" in forecast.text()


def test_checkpointing_and_parts_take_less_memory(base, photos, tmp_path):
    def step_bytes(**compute):
        config = replace(CONFIG, identity_steps=0, batch=8, compute=replace(CONFIG.compute, **compute))
        return dry_run(load_bundle(base), photos, tmp_path / "a", config).stages[0].step_bytes

    whole = step_bytes()
    assert step_bytes(checkpointing=True) < 0.8 * whole
    assert step_bytes(accumulate=4) < 0.5 * whole


def test_a_dry_run_of_a_stopped_run_counts_what_is_left(base, learn, photos, tmp_path, monkeypatch):
    with interrupted(lambda model, step: step == 11 and model.lora[0].requires_grad):
        learn(photos, tmp_path / "adapter", CONFIG)
    forecast = dry_run(load_bundle(base), photos, tmp_path / "adapter", CONFIG)
    assert [phase.done for phase in forecast.stages] == [12, 10]
    left = forecast.seconds - forecast.data_seconds
    assert left == pytest.approx(13 * forecast.stages[1].seconds)
    refused(r"identities\.state", dry_run, load_bundle(base), photos, tmp_path / "adapter", replace(CONFIG, seed=1))
    learn(photos, tmp_path / "adapter", CONFIG)
    assert dry_run(load_bundle(base), photos, tmp_path / "adapter", CONFIG).seconds == 0


def test_too_little_disk_is_said_before_anything_is_encoded(base, photos, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    monkeypatch.setattr(trainer, "encode_photos", None)
    for begin in (personalize, dry_run):
        refused(r"\d+ MB.* 1 MB", begin, load_bundle(base), photos, tmp_path / "adapter", CONFIG, error=DiveError)
    assert not list(tmp_path.iterdir())


def test_latents_of_a_prepared_set_are_timed_without_encoding(base, photos, tmp_path, monkeypatch):
    latents = encode_photos(load_bundle(base), photos, progress=False)
    monkeypatch.setattr(trainer, "encode_photos", None)
    forecast = dry_run(load_bundle(base), latents, tmp_path / "a", CONFIG)
    assert forecast.data_seconds == 0
    assert forecast.numbers["photos"] == len(samples_of(latents)) == 14


def test_few_photos_are_of_both_modalities(photos):
    chosen = [photos[i] for i in np.flatnonzero(trainer.spread(photos, 2))]
    assert [(s.pid, s.modality) for s in chosen] == [("0001", "rgb"), ("0001", "ir"), ("0003", "ir"), ("0004", "rgb")]


def test_the_command_prints_the_forecast(base, folders, tmp_path, run):
    words = f"--model {base} --photos folder:{folders[0]} --batch 2 --rank 2 --steps 7 --dry-run --json"
    code, out, _ = run(f"personalize --out {tmp_path}/out {words}")
    assert code == 0
    assert "\npersonalize: 7 steps of 2 photos" in out
    summary = last_json(out)
    assert summary["photos"] == 8
    assert [phase["steps"] for phase in summary["stages"]] == [4000, 7]
    assert not list(tmp_path.iterdir())
