"""The study at toy size: interrupted, resumed, continued; what it refuses; what it reports."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from dive_fast.encoder.folder import load_encoder
from dive_fast.experiments import arms as room
from dive_fast.experiments import networks
from dive_fast.experiments.config import DemoConfig, StudyConfig
from dive_fast.experiments.networks import check_adapter, used_encoder
from dive_fast.experiments.pipeline import Timings
from dive_fast.experiments.study import run_study
from dive_fast.json_files import read_json
from dive_fast.models import load_adapter, load_bundle
from dive_fast.reid.comparison import runs as running
from dive_fast.world.config import WorldSpec
from tests.support.refusals import refused
from tests.support.tiny import tiny_adapter
from tests.support.walk import SMALL, SPEC, torch_engine

ARMS = ["paired-only", "rgb-only", "grey", "ours", "autoencoder", "oracle"]


def times(out):
    """When every file was last written, but for those that every call writes."""
    files = (path for path in out.rglob("*") if path.is_file())
    kept = (path for path in files if path.parent not in (out, out / "compare"))
    return {path.relative_to(out): path.stat().st_mtime_ns for path in kept}


@pytest.fixture(scope="module")
def config(tiny_base, adapter):
    options = {"seeds": (0,), "curve": (1, 2), "autoencoder": True, "workers": 1}
    return StudyConfig(model=str(tiny_base), adapter=str(adapter), **options, **SMALL)


@pytest.fixture(scope="module")
def resumed(config, tmp_path_factory):
    """A study that was interrupted in its fourth training and run again: folder, file times between, result."""
    out, real, calls = tmp_path_factory.mktemp("study") / "out", running.carry_out, []

    def interrupted(run, progress=False):
        calls.append(run.arm)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(run, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dive_fast.experiments.pipeline.build_engine", torch_engine)
        patch.setattr(running, "carry_out", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_study(config, out)
        assert not (out / "study.json").exists()
        between, seconds = times(out), read_json(out / "seconds.json", "")
        (out / ".fused.dive-tmp").mkdir()  # as a kill while the model is fused leaves
        result = run_study(config, out)
    return out, between, seconds, result, calls


@pytest.mark.slow
def test_an_interrupted_study_repeats_nothing(resumed):
    out, between, _, _, calls = resumed
    assert calls == [*ARMS[:4], *ARMS[3:], "paired-only"]  # the curve's second step is the study's own run
    assert {path.parts[0] for path in between} == {"world", "adapter", "adapter.training", "fused", "pairs"} | {
        *("grey", "autoencoder", "scorer", "compare")
    }
    assert between.items() <= times(out).items()
    assert not (out / ".fused.dive-tmp").exists()


@pytest.mark.slow
def test_a_study_learns_who_is_missing_and_reports_every_arm(resumed):
    out, _, seconds, result, _ = resumed
    assert read_json(out / "study.json", "")["comparison"]["baseline"] == "paired-only"
    arms = {arm["name"]: arm for arm in result["comparison"]["arms"]}
    assert list(arms) == ARMS
    assert arms["ours"]["synthetic"] == arms["autoencoder"]["synthetic"] == 4 * 2
    assert len({arms[name]["infrared"] for name in ARMS[2:]}) == 1
    assert [i.pid for i in load_adapter(out / "adapter").identities][-1] == "1001"
    assert result["curve"][1] == {"steps": 2, "map": arms["paired-only"]["map"][0]}
    assert [point["steps"] for point in result["curve"]] == [1, 2]
    assert Image.open(out / "curve.png").size[0] > 600
    assert Image.open(out / "people.png").size[0] > 1000
    stages = ["world", "people", "fuse and export", "pairs", "autoencoder", "scorer", "identity kept", "reid", "curve"]
    assert list(result["seconds"]) == stages
    assert all(result["seconds"][stage] >= before for stage, before in seconds.items())


@pytest.mark.slow
def test_a_finished_study_takes_more_seeds_and_no_other_settings(resumed, config, monkeypatch):
    out, _, _, result, _ = resumed
    monkeypatch.setattr("dive_fast.experiments.pipeline.build_engine", torch_engine)
    before = times(out)
    steps = replace(config, reid=replace(config.reid, steps=3), seeds=(0, 1))
    refused(("reid.steps 2 (now 3)", "--out"), run_study, steps, out)
    refused("world.market_images 2", run_study, replace(config, world=replace(SPEC, market_images=3)), out)
    assert times(out) == before
    more = run_study(replace(config, seeds=(0, 1), curve=()), out)
    assert more["comparison"]["seeds"] == [0, 1]
    assert [arm["map"][0] for arm in more["comparison"]["arms"]] == [a["map"][0] for a in result["comparison"]["arms"]]
    after = times(out)
    assert before.items() <= after.items()
    new = {name.parts[:3] for name in set(after) - set(before)}
    assert new == {("compare", arm, "seed-1") for arm in ARMS}


@pytest.mark.slow
def test_identity_kept_is_in_the_table_and_measured_once(resumed, config, monkeypatch):
    out, _, _, result, _ = resumed
    measured = result["quality"]["arms"]
    assert set(measured) == {"grey", "ours", "autoencoder", "oracle"}
    arms = {arm["name"]: arm["kept"] for arm in result["comparison"]["arms"]}
    assert {name for name, kept in arms.items() if kept is not None} == set(measured)
    for name, (everything, cam3, cam6) in measured.items():
        kept = everything["kept"]
        assert kept["images"] == 4 * 2 and kept["identities"] == kept["gallery_identities"] == 4
        assert arms[name] == kept["by_image"]
        assert (cam3["camera"], cam6["camera"], cam3["distance"]["made"]) == ("cam3", "cam6", 4)
    assert {"kid", "fid_above_oracle"} < set(result["quality"]["ratios"]["all"])
    assert "identity kept" in (out / "compare" / "table.txt").read_text()
    monkeypatch.setattr("dive_fast.experiments.pipeline.build_engine", torch_engine)
    monkeypatch.setattr("dive_fast.experiments.pipeline.picture_quality", None)
    again = run_study(replace(config, curve=(), autoencoder=False), out)
    assert again["quality"] == read_json(out / "study.json", "")["quality"]
    assert again["quality"]["arms"]["ours"][0]["kept"] == measured["ours"][0]["kept"]
    assert [arm["name"] for arm in again["comparison"]["arms"] if arm["kept"]] == ["grey", "ours", "oracle"]


def test_other_photos_are_left_to_search_in(config):
    refused(("below the 2 photos", "got 2"), replace, config, pairs=replace(config.pairs, per_camera=2))


def test_a_folder_with_other_files_is_not_a_study(config, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused("notes|no study", run_study, config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_adapter_may_have_seen_the_infrared_of_paired_people_only(tiny_base, config, tmp_path):
    made, spec = tiny_adapter(load_bundle(tiny_base)), WorldSpec(paired_ids=24, test_ids=200)

    def seen(*pids):
        return replace(made, metadata={"infrared_identities": list(pids)})

    check_adapter(seen("0001", "0024"), "mine", spec)
    check_adapter(seen(), "mine", spec)
    refused("mine does not record", check_adapter, made, "mine", spec)
    refused(("1 people", "1001 (external)", "--adapter none"), check_adapter, seen("0001", "1001"), "mine", spec)
    refused("0301 .test.", check_adapter, seen("0301"), "mine", spec)
    refused("0025 .not in this world.", check_adapter, seen("0025"), "mine", spec)
    check_adapter(seen("0025"), "mine", spec, strangers=True)
    refused("1001", check_adapter, seen("0025", "1001"), "mine", spec, strangers=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "load_adapter", lambda path: made)
        refused("does not record", run_study, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_encoder_may_know_nobody_of_a_study(tiny_base, adapter, encoder, config):
    """It was trained on people 1 to 8; in the other world, they are among those that test."""
    known = load_adapter(adapter)
    chosen = replace(config, encoder=str(encoder))
    assert used_encoder(chosen, known).fingerprint == load_encoder(encoder).fingerprint
    assert used_encoder(replace(chosen, encoder=None), known) is None
    everyone = replace(known, identities=(replace(known.identities[0], pid="1001"), *known.identities[1:]))
    assert used_encoder(chosen, everyone) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldSpec, "test_pids", property(lambda self: range(8, 10)))
        refused(("1 people", "0008", "--encoder none"), used_encoder, chosen, known)
    refused("belongs to base", used_encoder, chosen, replace(known, base_fingerprint="0" * 64))


def test_the_shipped_adapter_is_not_used_for_people_of_another_world():
    other = WorldSpec(seed=1)
    refused("seed 0", StudyConfig, world=other)
    assert StudyConfig(world=other, adapter=None).world.seed == 1


def test_the_study_of_record():
    """Sizes at which the oracle is many deviations above paired-only; the demo keeps its own."""
    found = StudyConfig()
    assert (found.world.paired_ids, found.world.external_ids, found.world.test_ids) == (24, 160, 200)
    assert (found.reid.synthetic_fraction, found.reid.precision, len(found.seeds)) == (0.5, "bf16", 5)
    assert (DemoConfig().curve, DemoConfig().reid.synthetic_fraction, DemoConfig().world.paired_ids) == ((), 0.5, 12)


def test_seconds_add_up_over_runs(tmp_path, monkeypatch):
    clock = iter([10.0, 14.5, 20.0, 21.0, 30.0, 32.0])
    monkeypatch.setattr("dive_fast.experiments.pipeline.time.perf_counter", lambda: next(clock))
    first = Timings(tmp_path / "seconds.json")
    with first.stage("world"):
        pass
    with pytest.raises(KeyboardInterrupt), first.stage("learn"):
        raise KeyboardInterrupt
    again = Timings(tmp_path / "seconds.json")
    with again.stage("learn"):
        pass
    assert json.loads((tmp_path / "seconds.json").read_text()) == again.seconds == {"world": 4.5, "learn": 3.0}


def test_seconds_of_another_kind_are_refused(tmp_path):
    for held in ([], {"world": "x"}):
        (tmp_path / "seconds.json").write_text(json.dumps(held))
        refused(r"seconds\.json", Timings, tmp_path / "seconds.json")


def test_an_oracle_of_another_kind_is_refused(tmp_path):
    (tmp_path / "oracle").mkdir()
    (tmp_path / "oracle/pairs.jsonl").write_text('{"index": 0, "ir": {"cam3": "a.jpg"}}\n')
    refused(r"pairs\.jsonl line 1", room.oracle_infrared, tmp_path, 1)


def test_a_killed_stage_has_noted_its_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr("dive_fast.experiments.pipeline._NOTE_SECONDS", 0.01)
    path = tmp_path / "seconds.json"
    with Timings(path).stage("reid"):
        while not path.exists():
            pass
    assert "reid" in read_json(path, "")


@pytest.mark.slow
def test_the_autoencoder_arm_is_the_truth_through_the_model(world, tiny_base, tiny_fused, tmp_path):
    from dive_fast.engines import load_engine

    truth = room.oracle_infrared(world, 1)
    made = room.autoencoded_infrared(load_engine(tiny_fused, size=(64, 32)), truth, tmp_path)
    assert [(s.pid, s.camera, s.modality, s.source) for s in made] == [
        (s.pid, s.camera, "ir", "synthetic") for s in truth
    ]
    with Image.open(truth[0].path) as image:
        pixels = np.asarray(image.convert("RGB").resize((32, 64), Image.Resampling.LANCZOS), np.float32)
    vae = load_bundle(tiny_base).vae
    with torch.no_grad():
        given = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        back = vae.decode(vae.encode(given).latent_dist.mean).sample[0].permute(1, 2, 0)
    expected = ((back + 1) * 127.5).clamp(0, 255).numpy() @ [0.299, 0.587, 0.114]
    with Image.open(made[0].path) as image:
        assert image.mode == "L" and image.size == (32, 64)
        assert np.abs(np.asarray(image, np.float64) - expected).max() <= 1.5  # rounded twice: pixels, then luma
