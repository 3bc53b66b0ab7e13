"""The walk from end to end at toy size: arms, the demo with its page, the study, and that reruns do nothing twice."""

import html
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from dive_fast.engines import load_engine
from dive_fast.experiments import arms as room
from dive_fast.experiments.config import DemoConfig, PairConfig, StudyConfig
from dive_fast.experiments.demo import run_demo
from dive_fast.experiments.pipeline import learn_missing, run_study
from dive_fast.models import fuse, load_adapter, load_bundle, save_bundle
from dive_fast.reid.training.config import ReidConfig
from dive_fast.sampling import Sampling
from dive_fast.train.config import PersonalizeConfig
from dive_fast.train.personalize import personalize
from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world
from tests.support.refusals import refused

SPEC = WorldSpec(paired_ids=8, test_ids=3, external_ids=3, images_per_camera=2, market_images=2)
LEARN = PersonalizeConfig(identity_steps=2, steps=2, batch=4, rank=2)
PAIRS = PairConfig(per_camera=1, sampling=Sampling(2), rows=8)
SMALL = {"world": SPEC, "learn": LEARN, "pairs": PAIRS, "reid": ReidConfig(steps=2, missing="visible")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("walk") / "world"
    build_world(out, SPEC)
    return out


@pytest.fixture(scope="module")
def adapter(world, tiny_base, tmp_path_factory):
    """Trained on everyone but the first external person."""
    photos = [*room.paired_photos(world), *(s for s in room.external_photos(world) if s.pid != "1001")]
    out = tmp_path_factory.mktemp("walk") / "adapter"
    personalize(load_bundle(tiny_base), photos, out, LEARN, progress=False)
    return out


@pytest.mark.slow
def test_arms_differ_in_the_infrared_of_external_people_only(world, tmp_path):
    ours = room.oracle_infrared(world, 1)  # stands in for generated images
    arms = room.build_arms(world, tmp_path, ours, per_camera=1)
    assert list(arms) == ["paired-only", "baseline", "grey", "ours", "oracle"]
    paired, photos = room.paired_photos(world), room.external_photos(world)
    assert len(paired) == 8 * 6 * 2
    assert len(photos) == 3 * 2
    assert arms["paired-only"] == paired
    assert arms["baseline"] == paired + photos
    for name in ("grey", "ours", "oracle"):
        extra = arms[name][len(arms["baseline"]) :]
        assert arms[name][: len(arms["baseline"])] == arms["baseline"]
        assert len(extra) == 3 * 2
        assert {s.modality for s in extra} == {"ir"}
        assert {s.pid for s in extra} == {"1001", "1002", "1003"}
    query, gallery = room.heldout_sides(world)
    tested = {s.pid for s in query}
    assert tested == {s.pid for s in gallery} == {"0301", "0302", "0303"}
    assert {s.camera for s in query} == {"cam3", "cam6"}
    assert not tested & {s.pid for samples in arms.values() for s in samples}


def test_grey_is_luma(world, tmp_path):
    sample = room.grey_infrared(world, tmp_path, 1)[0]
    photo = next(s for s in room.external_photos(world) if s.path.stem == sample.path.stem)
    with Image.open(photo.path) as rgb, Image.open(sample.path) as grey:
        assert grey.mode == "L"
        red, green, blue = rgb.convert("RGB").getpixel((32, 64))
        assert abs(grey.getpixel((32, 64)) - (0.299 * red + 0.587 * green + 0.114 * blue)) <= 1


def test_an_external_person_without_infrared_is_named(world, tmp_path):
    refused(
        "'1003'", room.build_arms, world, tmp_path, [s for s in room.oracle_infrared(world, 1) if s.pid != "1003"], 1
    )


@pytest.mark.slow
def test_the_demo_makes_a_page_and_its_rerun_makes_nothing_again(tiny_base, adapter, tmp_path):
    config = DemoConfig(model=str(tiny_base), adapter=str(adapter), shown=2, **SMALL)
    found = run_demo(tmp_path / "demo", config)
    page, text = found.page, found.page.read_text()
    assert page.name == "index.html"
    assert not re.search(r"(src|href)=\"(?!data:)", text), "the page must carry everything itself"
    assert text.count("learned live") == 1
    assert text.count("known to the adapter") == 1
    assert len(re.findall(r"<img[^>]*>", text)) == 2 * 9, (
        "photo, 2 of ours, 2 true, 2 generated, a photo and its infrared"
    )
    assert len(re.findall(r'<img class="made"', text)) == 2 * 5
    assert html.escape(found.result) in text and html.escape(found.limits) in text
    for word in ("paired-only", "baseline", "grey", "ours", "oracle", "gap closed"):
        assert word in text
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*") if p.suffix in (".png", ".jpg", ".onnx")}
    assert len(made) > 100
    run_demo(tmp_path / "demo", config)
    changed = {path.name for path in made if made[path] != path.stat().st_mtime_ns}
    assert changed <= {"compare.png", "differences.png"}


def _torch_engine(model, adapter, work, rows):
    """Stands in for the export, which the demo's test runs."""
    fused = work / "fused"
    save_bundle(fuse(load_bundle(model), adapter), fused)
    return load_engine(fused, size=(64, 32))


@pytest.mark.slow
def test_the_study_learns_who_is_missing_and_reports_every_arm(tiny_base, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("dive_fast.experiments.pipeline.build_engine", _torch_engine)
    config = StudyConfig(model=str(tiny_base), adapter=str(adapter), seeds=(0, 1), **SMALL)
    result = run_study(config, tmp_path / "study")
    assert json.loads((tmp_path / "study" / "study.json").read_text())["comparison"]["seeds"] == [0, 1]
    arms = {arm["name"]: arm for arm in result["comparison"]["arms"]}
    assert list(arms) == ["paired-only", "baseline", "grey", "ours", "oracle"]
    assert arms["ours"]["synthetic"] == 3 * 2
    assert arms["grey"]["infrared"] == arms["ours"]["infrared"] == arms["oracle"]["infrared"]
    learned = load_adapter(tmp_path / "study" / "adapter")
    assert [i.pid for i in learned.identities][-1] == "1001"


def test_the_shipped_adapter_is_not_used_for_people_of_another_world(tmp_path):
    refused("seed 0", run_study, StudyConfig(world=replace(SPEC, seed=1)), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_nobody_new_to_learn_keeps_the_adapter(world, tiny_base, adapter, tmp_path):
    photos = [s for s in room.external_photos(world) if s.pid != "1001"]
    same = learn_missing(str(tiny_base), adapter, photos, tmp_path / "none", LEARN)
    assert same.fingerprint == load_adapter(adapter).fingerprint
    assert not (tmp_path / "none").exists()
