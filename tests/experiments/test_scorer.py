"""Picture quality at toy size: the scorer, true images as the best that can be reached, cached results, the command."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dive_fast.engines import load_engine
from dive_fast.experiments import scorer as room
from dive_fast.experiments.arms import autoencoded_infrared
from dive_fast.io import write_json
from dive_fast.json_files import read_json
from dive_fast.types import Sample
from dive_fast.world.config import WorldSpec
from dive_fast.world.trees import build_world
from tests.support.dataset import write_dataset
from tests.support.refusals import refused

SHOTS = 2
SPEC = WorldSpec(paired_ids=1, test_ids=4, external_ids=5, images_per_camera=2, market_images=4)
SMALL = replace(room.SCORER, steps=40, identities=4, per_modality=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scorer") / "world"
    build_world(out, SPEC)
    return out


@pytest.fixture(scope="module")
def scorer(world, tmp_path_factory) -> Path:
    return room.train_scorer(world, tmp_path_factory.mktemp("scorer") / "net", SMALL, progress=False)


@pytest.fixture(scope="module")
def decoded(world, tiny_base, tmp_path_factory) -> list[Sample]:
    """The first true shots through an untrained autoencoder."""
    truth, _ = room.true_infrared(world, SHOTS)
    return autoencoded_infrared(load_engine(tiny_base), truth, tmp_path_factory.mktemp("scorer") / "decoded")


@pytest.fixture
def copies(world, tmp_path) -> list[Sample]:
    """Copies of the first true shots."""
    shutil.copytree(world / "oracle", tmp_path / "oracle")
    truth, _ = room.true_infrared(world, SHOTS)
    return [replace(sample, path=tmp_path / sample.path.relative_to(world)) for sample in truth]


@pytest.mark.slow
def test_the_scorer_knows_the_test_people_and_is_trained_once(world, scorer):
    record = read_json(scorer / "reid.json", "")
    assert record["pids"] == ["0301", "0302", "0303", "0304"]
    assert (record["images"], record["infrared"], record["synthetic"]) == (4 * 6 * 2, 4 * 2 * 2, 0)
    before = (scorer / "model.safetensors").stat().st_mtime_ns
    assert room.train_scorer(world, scorer, SMALL, progress=False) == scorer
    assert (scorer / "model.safetensors").stat().st_mtime_ns == before
    refused("another config", room.train_scorer, world, scorer, replace(SMALL, seed=1), progress=False)


def test_true_shots_are_split(world):
    first, others = room.true_infrared(world, SHOTS)
    assert len(first) == len(others) == 5 * 2 * 2 and not {*first} & {*others}
    assert {sample.path.stem for sample in first} == {"0001", "0002"}
    refused("smaller --shots", room.true_infrared, world, 4)


@pytest.mark.slow
def test_true_images_as_generated_ones_are_as_good_as_the_truth(world, scorer, decoded, copies):
    arms = {"autoencoder": decoded, "ours": copies[::-1]}
    found = room.picture_quality(world, arms, scorer, shots=SHOTS, progress=False)
    assert list(found.arms) == ["autoencoder", "ours", "oracle"]
    oracle, through = found.arms["oracle"], found.arms["autoencoder"]
    assert found.arms["ours"] == oracle
    assert [row.camera for row in oracle] == ["all", "cam3", "cam6"]
    assert [row.kept.images for row in oracle] == [20, 10, 10]
    assert [(row.distance.made, row.distance.real) for row in through] == [(20, 20), (10, 10), (10, 10)]
    for true, lost in zip(oracle, through, strict=True):
        assert true.kept.by_image.value > lost.kept.by_image.value
        assert true.distance.kid < lost.distance.kid
        assert min(level for level in true.brightness.values() if level is not None) > 0.8
    ratio = found.ratios()["cam3"]
    assert ratio["fid"] == oracle[1].distance.fid / through[1].distance.fid < 1
    assert ratio["fid_above_oracle"] == ratio["kid_above_oracle"] == 0
    lines = room.table(found).splitlines()
    assert len(lines) == 1 + 3 * 3 + 3 and f"{through[0].distance.fid:.2f}" in lines[1]


@pytest.mark.slow
def test_another_identitys_images_are_not_kept(world, scorer, decoded, copies):
    pids = sorted({sample.pid for sample in copies})
    following = dict(zip(pids, [*pids[1:], pids[0]], strict=True))
    wrong = [replace(sample, pid=following[sample.pid]) for sample in copies if sample.camera == "cam6"]
    arms = {"ours": wrong, "autoencoder": decoded}
    found = room.picture_quality(world, arms, scorer, shots=SHOTS, progress=False).arms
    assert [row.camera for row in found["ours"]] == ["all"]
    (ours,), (oracle,) = found["ours"], found["oracle"]
    assert ours.kept.by_image.value < oracle.kept.by_image.value
    assert oracle.kept.images == len(wrong)
    assert ours.distance.fid == pytest.approx(oracle.distance.fid)  # sets have no names
    assert ours.brightness["torso"] < oracle.brightness["torso"]


def test_a_measurement_is_of_its_images_and_its_scorer(world, tmp_path):
    first, others = room.true_infrared(world, SHOTS)
    calls = []

    def measured(samples, sha256="a"):
        write_json(tmp_path / "net" / "reid.json", {"sha256": sha256, "config": {}, "pids": ["0301"]})
        count = len(calls)
        found = room.measured_once(
            tmp_path / "found.json", tmp_path / "net", {"ours": samples}, lambda: calls.append(0) or {"n": len(calls)}
        )
        return found["n"], len(calls) > count

    assert [measured(first), measured(first), measured(others)] == [(1, True), (1, False), (2, True)]
    assert [measured(others, "b"), measured(others, "b")] == [(3, True), (3, False)]


def test_correlations_by_hand():
    true = np.array([[1.0, 5], [2, 5], [3, 5]])
    assert room.correlations(np.array([[3.0, 1], [5, 2], [4, 3]]), true) == {"torso": pytest.approx(0.5), "legs": None}


def test_ratios_by_hand():
    def rows(kid: float, fid: float):
        return (SimpleNamespace(camera="cam3", distance=SimpleNamespace(kid=kid, fid=fid)),)

    def ratios(ours, autoencoder, oracle):
        return room.PictureQuality({"ours": ours, "autoencoder": autoencoder, "oracle": oracle}).ratios()["cam3"]

    found = ratios(rows(0.5, 9), rows(-0.1, 3), rows(-0.4, 1))
    assert found == {"kid": None, "fid": 3, "kid_above_oracle": pytest.approx(3), "fid_above_oracle": 4}
    assert ratios(rows(0.5, 9), rows(0, 1), rows(0, 1))["fid_above_oracle"] is None


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused(world, scorer, decoded, copies):
    stranger = [*copies, Sample(copies[0].path.with_name("0009.jpg"), "0001", "cam3", "synthetic", "ir")]
    for words, made in (
        ("1 of 6 identities", stranger),
        ("no query image", []),
        ("got cam3 2", [s for s in copies if s.camera == "cam3"][:2]),
        ("got cam9 0", [replace(sample, camera="cam9") for sample in copies]),
    ):
        arms = {"ours": made, "autoencoder": decoded}
        refused(words, room.picture_quality, world, arms, scorer, shots=SHOTS, progress=False)


@pytest.mark.slow
def test_the_command_measures_a_dataset(world, scorer, tiny_base, tmp_path, step, monkeypatch):
    def draw(side: str, name: str) -> Image.Image:
        camera, pid, file = name.split("/")
        shot = f"{1 + int(Path(file).stem) % 2:04d}.jpg"
        return Image.open(world / "oracle" / ("cam3" if side == "rgb" else camera) / pid / shot)

    pids = [f"{pid:04d}" for pid in SPEC.external_pids]
    pairs = write_dataset(tmp_path / "pairs", draw, pids=pids, pairs_per_identity=2, height=128, width=64)
    line = f"world quality --world {world} --pairs {pairs} --model {tiny_base} --shots {SHOTS} --device cpu --scorer"
    found = step(f"{line} {scorer}")
    assert list(found["arms"]) == ["autoencoder", "oracle", "ours"]
    ours = found["arms"]["ours"]
    assert [row["camera"] for row in ours] == ["all", "cam3", "cam6"]
    assert ours[0]["kept"]["identities"] == 5 and "each" not in ours[0]["kept"]
    assert {"kid", "fid_above_oracle"} < set(found["ratios"]["all"])
    monkeypatch.setattr(room, "train_scorer", lambda world, out, device: shutil.copytree(scorer, out))
    assert step(f"{line} {tmp_path / 'new'}") == found
