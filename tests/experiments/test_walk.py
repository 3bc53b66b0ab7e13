"""The walk from end to end at toy size: arms, the demo with its page, and that reruns do nothing twice."""

import html
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dive_fast.encoder.folder import load_encoder
from dive_fast.experiments import arms as room
from dive_fast.experiments import networks
from dive_fast.experiments.config import DemoConfig, StudyConfig
from dive_fast.experiments.demo import run_demo
from dive_fast.experiments.pipeline import study_adapter
from dive_fast.experiments.study import run_study
from dive_fast.models import load_adapter
from dive_fast.world.config import WorldSpec
from tests.support.refusals import refused
from tests.support.walk import SMALL


@pytest.mark.slow
def test_arms_differ_in_the_infrared_of_external_people_only(world, tmp_path):
    ours = room.oracle_infrared(world, 1)  # stands in for generated images
    arms = room.build_arms(world, tmp_path, ours, per_camera=1)
    assert list(arms) == ["paired-only", "rgb-only", "grey", "ours", "oracle"]
    paired, photos = room.paired_photos(world), room.external_photos(world)
    assert len(paired) == 8 * 6 * 2
    assert len(photos) == 4 * 2
    assert arms["paired-only"] == paired
    assert arms["rgb-only"] == paired + photos
    for name in ("grey", "ours", "oracle"):
        extra = arms[name][len(arms["rgb-only"]) :]
        assert arms[name][: len(arms["rgb-only"])] == arms["rgb-only"]
        assert len(extra) == 4 * 2
        assert {s.modality for s in extra} == {"ir"}
        assert {s.pid for s in extra} == {"1001", "1002", "1003", "1004"}
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
def test_the_demo_makes_a_page_and_its_rerun_makes_nothing_again(tiny_base, adapter, encoder, tmp_path):
    config = DemoConfig(model=str(tiny_base), adapter=str(adapter), shown=2, **{**SMALL, "encoder": str(encoder)})
    found = run_demo(tmp_path / "demo", config)
    page, text = found.page, found.page.read_text()
    assert page.name == "index.html"
    assert not re.search(r"(src|href)=\"(?!data:)", text), "the page must carry everything itself"
    assert text.count("added live") == 1 and "1 new person" in text
    assert text.count("known to the adapter") == 1
    assert len(re.findall(r"<img[^>]*>", text)) == 2 * 9, (
        "photo, 2 of ours, 2 true, 2 generated, a photo and its infrared"
    )
    assert len(re.findall(r'<img class="made"', text)) == 2 * 5
    assert html.escape(found.result) in text and html.escape(found.limits) in text
    for word in ("paired-only", "rgb-only", "grey", "ours", "oracle", "gap closed", "identity kept"):
        assert word in text
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "demo").rglob("*") if p.suffix in (".png", ".jpg", ".onnx")}
    assert len(made) > 100
    run_demo(tmp_path / "demo", config)
    changed = {path.name for path in made if made[path] != path.stat().st_mtime_ns}
    assert changed <= {"compare.png", "differences.png"}


@pytest.mark.parametrize(
    ("room", "begin"),
    [
        ("demo", lambda out: run_demo(out, DemoConfig())),
        ("study", lambda out: run_study(StudyConfig(), out)),
    ],
)
def test_the_shipped_networks_are_accepted(room, begin, tmp_path, monkeypatch):
    """Without options: the adapter has learned from 24 people, more than the demo's paired ones."""

    class ItBegins(Exception):
        pass

    def begun(*_):
        raise ItBegins

    monkeypatch.setattr(f"dive_fast.experiments.{room}.run_walk", begun)
    with pytest.raises(ItBegins):
        begin(tmp_path / "out")


@pytest.mark.slow
def test_the_demo_refuses_networks_that_know_its_people(tiny_base, adapter, encoder, tmp_path):
    """The encoder was trained on people 1 to 8; in the other world, they are among those that test."""
    config = DemoConfig(model=str(tiny_base), adapter=str(adapter), **{**SMALL, "encoder": str(encoder)})
    known = load_adapter(adapter)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldSpec, "test_pids", property(lambda self: range(8, 10)))
        refused(("1 people", "0008"), run_demo, tmp_path / "demo", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "load_adapter", lambda path: replace(known, metadata={"infrared_identities": ["1001"]}))
        refused(("1001 (external)",), run_demo, tmp_path / "demo", config)
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_people_whom_the_adapter_lacks_are_encoded_or_learned(world, tiny_base, adapter, encoder, tmp_path):
    known = load_adapter(adapter)
    config = StudyConfig(model=str(tiny_base), adapter=str(adapter), **{**SMALL, "encoder": str(encoder)})
    opened, photos = load_encoder(encoder), [s for s in room.external_photos(world) if s.pid == "1001"]
    rows = opened.rows(opened.source.features(photos))
    for chosen, expected in ((config, rows), (replace(config, encoder=None), None)):
        made = study_adapter(chosen, world, tmp_path / str(chosen.encoder is None))
        assert [i.pid for i in made.identities] == [*(i.pid for i in known.identities), "1001"]
        assert torch.equal(made.embeddings[: len(known.embeddings)], known.embeddings)
        if expected is not None:
            torch.testing.assert_close(made.embeddings[len(known.embeddings) :], expected)
    complete = replace(config, adapter=str(tmp_path / "True" / "adapter"))
    same = study_adapter(complete, world, tmp_path / "none")
    assert same.fingerprint == made.fingerprint and not (tmp_path / "none").exists()
